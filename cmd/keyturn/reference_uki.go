package main

import (
	"encoding/hex"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyturn/keyturn/attest"
	"github.com/keyturn/keyturn/attest/uki"
)

// A ukiView is the answer of reference from-uki. Digests are sha256, in hex.
type ukiView struct {
	Stub         string        `json:"stub"` // version of systemd-stub
	Authenticode string        `json:"authenticode"`
	Kernel       string        `json:"kernel,omitempty"` // Authenticode digest of .linux
	Sections     []ukiSection  `json:"sections"`
	PCR4         []string      `json:"pcr4"`  // either of these
	PCR11        string        `json:"pcr11"` // when the stub hands over
	Phases       []ukiPhaseRow `json:"phases"`
}

type ukiSection struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	Digest string `json:"digest"`
}

// A ukiPhaseRow is PCR 11 after systemd has extended it with a word.
type ukiPhaseRow struct {
	Phase string `json:"phase"`
	PCR11 string `json:"pcr11"`
}

func fromUKICmd(a *app) *cobra.Command {
	var s setFlags
	var phase string
	cmd := &cobra.Command{Use: "from-uki FILE", Short: "predict what a machine measures that boots a unified kernel image", Args: cobra.ExactArgs(1),
		Long: `From-uki reads a unified kernel image and predicts PCR 11 (its sections, as
systemd-stub measures them) and what PCR 4 is extended with (the Authenticode
digest), without booting it.

The values of PCR 4 hold where the firmware boots the image itself, with no boot
loader before it. With --out it writes a reference set of PCR 11, or of the PCRs
named with --pcrs, for the founding file of a charter. If the machine's systemd
extends PCR 11 as it boots, name with --phase how far it has come.`,
		RunE: func(_ *cobra.Command, args []string) error {
			u, err := readUKI(args[0])
			if err != nil {
				return err
			}
			if s.out != "" {
				set, err := s.ofUKI(u, phase, time.Now())
				if err != nil {
					return err
				}
				if err := s.write(a.Out, set); err != nil {
					return err
				}
			}
			v := viewUKI(u)
			return a.Answer(v, func(w writer) { ukiText(w, v) })
		}}
	s.register(cmd, []int{11}, "file to write a reference set to")
	cmd.Flags().StringVar(&phase, "phase", "", "last word that systemd extends PCR 11 with: enter-initrd, leave-initrd, sysinit or ready (default none)")
	return cmd
}

func (s *setFlags) ofUKI(u *uki.Image, phase string, now time.Time) (*attest.ReferenceSet, error) {
	last := slices.Index(uki.Phases, phase)
	if last < 0 && phase != "" {
		return nil, usage(fmt.Errorf("phase %q; there are %v", phase, uki.Phases))
	}
	set := s.set(now)
	for _, pcr := range s.pcrs {
		switch pcr {
		case 4:
			set.PCRs[4] = nil
			for _, value := range u.PCR4() {
				set.PCRs[4] = append(set.PCRs[4], attest.Digest(value))
			}
		case 11:
			set.PCRs[11] = []attest.Digest{u.PCR11(uki.Phases[:last+1]...)}
		default:
			return nil, usage(fmt.Errorf("PCR %d; an image tells of 4 and 11 only", pcr))
		}
	}
	return set, set.Validate()
}

func readUKI(path string) (*uki.Image, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a file", path)
	}
	return uki.Read(f, info.Size())
}

func viewUKI(u *uki.Image) ukiView {
	inHex := func(d [32]byte) string { return hex.EncodeToString(d[:]) }
	v := ukiView{Stub: u.Stub, Authenticode: inHex(u.Authenticode), PCR11: inHex(u.PCR11())}
	if u.Kernel != nil {
		v.Kernel = inHex(*u.Kernel)
	}
	for _, s := range u.Sections {
		v.Sections = append(v.Sections, ukiSection{s.Name, s.Size, inHex(s.Digest)})
	}
	for _, value := range u.PCR4() {
		v.PCR4 = append(v.PCR4, inHex(value))
	}
	for i, word := range uki.Phases {
		v.Phases = append(v.Phases, ukiPhaseRow{word, inHex(u.PCR11(uki.Phases[:i+1]...))})
	}
	return v
}

func ukiText(w writer, v ukiView) {
	fmt.Fprintf(w, "stub         systemd-stub %s\n", printable(v.Stub))
	fmt.Fprintf(w, "authenticode %s\n", v.Authenticode)
	if v.Kernel != "" {
		fmt.Fprintf(w, "kernel       %s\n", v.Kernel)
	}
	for _, s := range v.Sections {
		fmt.Fprintf(w, "section      %-9s %s %d bytes\n", s.Name, s.Digest, s.Size)
	}
	for i, value := range v.PCR4 {
		fmt.Fprintf(w, "PCR 4        %s if the firmware boots it%s\n", value, []string{"", ", and is asked to start the kernel too"}[i])
	}
	fmt.Fprintf(w, "PCR 11       %s\n", v.PCR11)
	for _, p := range v.Phases {
		fmt.Fprintf(w, "             %s after %s\n", p.PCR11, p.Phase)
	}
}
