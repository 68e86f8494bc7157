package main

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyturn/keyturn/attest"
	"github.com/keyturn/keyturn/attest/eventlog"
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
	var from ukiFlags
	cmd := &cobra.Command{Use: "from-uki FILE", Short: "predict what a machine measures that boots a unified kernel image", Args: cobra.ExactArgs(1),
		Long: `From-uki reads a unified kernel image and predicts PCR 11 (its sections, as
systemd-stub measures them) and what PCR 4 is extended with (the Authenticode
digest), without booting it.

The values of PCR 4 hold where the firmware boots the image itself, with no boot
loader before it. With --out it writes a reference set of PCR 11, or of the PCRs
named with --pcrs, for the founding file of a charter. PCR 12 and 13 are wanted
all zeros: no command line, credential or extension was added to the image. If
the machine's systemd extends PCR 11 as it boots, name with --phase how far it
has come.

What the firmware measures no image tells of. Give with --eventlog the log of a
machine of the kind that is to boot the image, and had booted this or another
one: the other PCRs are taken from it, and which of its two values PCR 4 will
have. Such a set describes one boot, as keyturn reference approve-boot wants it.`,
		RunE: func(_ *cobra.Command, args []string) error {
			u, err := readUKI(args[0])
			if err != nil {
				return err
			}
			if s.out != "" {
				set, err := s.ofUKI(u, from, time.Now())
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
	f := cmd.Flags()
	f.StringVar(&from.phase, "phase", "", "last word that systemd extends PCR 11 with: enter-initrd, leave-initrd, sysinit or ready (default none)")
	f.StringVar(&from.log, "eventlog", "", "log of a machine's firmware, for what the image does not tell of")
	f.StringVar(&from.expect, "expect", "", `file with the PCRs that the log must lead to: {"0":"hex",...}`)
	return cmd
}

// ukiFlags say what is known of the machine that is to boot an image.
type ukiFlags struct{ phase, log, expect string }

func (s *setFlags) ofUKI(u *uki.Image, from ukiFlags, now time.Time) (*attest.ReferenceSet, error) {
	last := slices.Index(uki.Phases, from.phase)
	if last < 0 && from.phase != "" {
		return nil, usage(fmt.Errorf("phase %q; there are %v", from.phase, uki.Phases))
	}
	pcr4, firmware := u.PCR4(), eventlog.PCRs(nil)
	if from.log != "" {
		log, err := summarise(from.log, "sha256", from.expect)
		if err != nil {
			return nil, err
		}
		if pcr4, err = asBooted(pcr4, log); err != nil {
			return nil, fmt.Errorf("%s: %w", from.log, err)
		}
		firmware = log.PCRs
	}
	set := s.set(now)
	for _, pcr := range s.pcrs {
		value, known := firmware[pcr]
		switch {
		case pcr == 4:
			set.PCRs[4] = nil
			for _, value := range pcr4 {
				set.PCRs[4] = append(set.PCRs[4], value)
			}
		case pcr == 11:
			set.PCRs[11] = []attest.Digest{u.PCR11(uki.Phases[:last+1]...)}
		case pcr == 12 || pcr == 13:
			set.PCRs[pcr] = []attest.Digest{{}}
		case pcr > 7:
			return nil, usage(fmt.Errorf("PCR %d; firmware and image tell of 0 to 7 and 11 to 13", pcr))
		case !known:
			return nil, usage(fmt.Errorf("PCR %d; an image tells of 4 and 11 to 13 only: give the log of a machine with --eventlog", pcr))
		default:
			set.PCRs[pcr] = []attest.Digest{attest.Digest(value)}
		}
	}
	return set, set.Validate()
}

// asBooted returns the one of an image's values of PCR 4 that it has on a
// machine which booted the image, or another, as the log says.
func asBooted(values [][32]byte, log *eventlog.Summary) ([][32]byte, error) {
	var images [][32]byte
	for _, digest := range log.BootApplications {
		images = append(images, [32]byte(digest))
	}
	if pcr4 := uki.PCR4(images...); !bytes.Equal(log.PCRs[4], pcr4[:]) {
		return nil, fmt.Errorf("the machine did more in PCR 4 than boot its first option: it is %x, and %d images alone lead to %x", log.PCRs[4], len(images), pcr4)
	}
	if n := len(images); n < 1 || n > len(values) {
		return nil, fmt.Errorf("the machine executed %d images; one that starts a unified kernel image by itself executes 1 to %d", n, len(values))
	}
	return values[len(images)-1 : len(images)], nil
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
