package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyturn/keyturn/attest"
	"github.com/keyturn/keyturn/attest/ima"
	"github.com/keyturn/keyturn/attest/tree"
	"github.com/keyturn/keyturn/attest/uki"
)

// A packageView is the answer of reference from-package. Digests are sha256, in hex.
type packageView struct {
	Images  []packageFile `json:"images"` // boot loaders and kernels, with Authenticode digests
	Initrds []packageFile `json:"initrds"`
	PCR4    []string      `json:"pcr4,omitempty"` // any of these, if --boot named the images
	Files   []packageFile `json:"files"`          // that a kernel measures when it uses them
}

type packageFile struct {
	Path   string `json:"path"`
	Digest string `json:"digest"`
}

// packageFlags say what besides the files goes into a set.
type packageFlags struct {
	setFlags
	boot    []string
	from    string
	ignore  []string
	digests []string
	signed  []string
	split   bool
}

func fromPackageCmd(a *app) *cobra.Command {
	p := &packageFlags{}
	cmd := &cobra.Command{Use: "from-package DIR|FILE.deb...", Short: "predict what a machine measures that uses software packages", Args: cobra.MinimumNArgs(1),
		Long: `From-package reads what packages install, from directories that lie as they will
below the machine's root (dpkg-deb -x, rpm2cpio, an image that was built) or from
Debian packages, and lists the Authenticode digests of boot loaders and kernels,
the digests of initial RAM disks, and path and digest of every file that a kernel
may execute, map as code, load as a module or as firmware.

With --boot, the images in the order in which they start, such as shim, GRUB and
kernel, it predicts PCR 4. With --out it writes a reference set: PCR 4 if --boot
is given, the values of another set if --pcrs-from names it, and the files as
rules for the kernel's measurement list. --signed allows whatever a key signed
(evmctl ima_sign, or the distribution) below a path: a signature is of content, so
an old signed file with a known hole passes as well. What else runs on the machine has to be
in the rules as well, or it is refused: give all packages at once.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			all, err := p.read(cmd.Context(), args)
			if err != nil {
				return err
			}
			pcr4, err := p.pcr4(all)
			if err != nil {
				return err
			}
			if p.out != "" {
				set, err := p.ofTree(all, pcr4, time.Now())
				if err != nil {
					return err
				}
				if err := p.write(a.Out, set); err != nil {
					return err
				}
			}
			v := viewTree(all, pcr4)
			return a.Answer(v, func(w writer) { treeText(w, v) })
		}}
	p.registerSet(cmd, "file to write a reference set to")
	f := cmd.Flags()
	f.StringSliceVar(&p.boot, "boot", nil, "images that start one after the other, by their paths on the machine")
	f.StringVar(&p.from, "pcrs-from", "", "reference set whose PCR values the new one takes over")
	f.StringSliceVar(&p.ignore, "ignore", nil, "paths that are not judged; one that ends in / stands for all below")
	f.StringSliceVar(&p.digests, "digest", nil, "digests that are allowed under any path, sha256:HEX")
	f.StringArrayVar(&p.signed, "signed", nil, "BELOW/=FILE: whatever below that path carries a signature by a key or certificate in the file (PEM)")
	f.BoolVar(&p.split, "split-usr", false, "the machine's /bin and /lib are not links into /usr")
	return cmd
}

// read reads the trees of all arguments as one.
func (p *packageFlags) read(ctx context.Context, args []string) (*tree.Tree, error) {
	all := &tree.Tree{}
	for _, arg := range args {
		t, err := p.readOne(ctx, arg)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", arg, err)
		}
		all.Images, all.Initrds, all.Files = append(all.Images, t.Images...), append(all.Initrds, t.Initrds...), append(all.Files, t.Files...)
	}
	return all, nil
}

func (p *packageFlags) readOne(ctx context.Context, arg string) (*tree.Tree, error) {
	info, err := os.Stat(arg)
	if err != nil {
		return nil, err
	}
	dir := arg
	if !info.IsDir() {
		if !strings.HasSuffix(arg, ".deb") {
			return nil, errors.New("neither a directory nor a Debian package; unpack it first")
		}
		if dir, err = os.MkdirTemp("", "keyturn-package"); err != nil {
			return nil, err
		}
		defer os.RemoveAll(dir)
		path, err := filepath.Abs(arg)
		if err != nil {
			return nil, err
		}
		if out, err := exec.CommandContext(ctx, "dpkg-deb", "--extract", path, dir).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("dpkg-deb: %w: %.200s", err, printable(string(out)))
		}
	}
	return tree.Read(os.DirFS(dir), !p.split)
}

// pcr4 predicts the register for the images of --boot. Some boot loaders have the
// firmware measure the kernel when they verify it and again when it starts.
func (p *packageFlags) pcr4(t *tree.Tree) ([]attest.Digest, error) {
	if len(p.boot) == 0 {
		return nil, nil
	}
	var images [][32]byte
	for _, name := range p.boot {
		var found [][32]byte
		for _, f := range t.Images {
			if f.Path == name && !slices.Contains(found, f.Digest) {
				found = append(found, f.Digest)
			}
		}
		if len(found) != 1 {
			return nil, fmt.Errorf("--boot %s: the packages have %d images of that path, want 1", name, len(found))
		}
		images = append(images, found[0])
	}
	return []attest.Digest{uki.PCR4(images...), uki.PCR4(append(images, images[len(images)-1])...)}, nil
}

func (p *packageFlags) ofTree(t *tree.Tree, pcr4 []attest.Digest, now time.Time) (*attest.ReferenceSet, error) {
	set := p.set(now)
	if p.from != "" {
		other, _, err := readSet(p.from)
		if err != nil {
			return nil, err
		}
		set.PCRs = maps.Clone(other.PCRs)
	}
	if pcr4 != nil {
		set.PCRs[4] = pcr4
	}
	if len(set.PCRs) == 0 {
		return nil, usage(errors.New("a set names at least one PCR: give --boot, --pcrs-from, or both"))
	}
	signed, err := p.signers()
	if err != nil {
		return nil, err
	}
	if len(t.Files) == 0 && len(p.digests) == 0 && len(signed) == 0 {
		return set, set.Validate() // of boot loaders and kernels alone: files are not judged
	}
	set.IMA = &ima.Rules{Files: map[string][]string{}, Digests: p.digests, Signed: signed, Ignore: p.ignore}
	for _, f := range t.Files {
		digest := attest.Digest(f.Digest).String()
		if !slices.Contains(set.IMA.Files[f.Path], digest) {
			set.IMA.Files[f.Path] = append(set.IMA.Files[f.Path], digest)
		}
	}
	return set, set.Validate()
}

// signers reads the rules for signed files.
func (p *packageFlags) signers() (out []ima.Signed, err error) {
	for _, spec := range p.signed {
		below, file, ok := strings.Cut(spec, "=")
		if !ok || file == "" {
			return nil, usage(fmt.Errorf("--signed %q: want BELOW/=FILE", spec))
		}
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		keys, err := ima.ParseKeyring(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		ders, err := keys.Marshal()
		if err != nil {
			return nil, err
		}
		out = append(out, ima.Signed{Below: below, Keys: ders})
	}
	return out, nil
}

func viewTree(t *tree.Tree, pcr4 []attest.Digest) packageView {
	list := func(files []tree.File) []packageFile {
		out := []packageFile{}
		for _, f := range files {
			out = append(out, packageFile{f.Path, hex.EncodeToString(f.Digest[:])})
		}
		return out
	}
	v := packageView{Images: list(t.Images), Initrds: list(t.Initrds), Files: list(t.Files)}
	for _, d := range pcr4 {
		v.PCR4 = append(v.PCR4, hex.EncodeToString(d[:]))
	}
	return v
}

func treeText(w writer, v packageView) {
	show := func(name string, files []packageFile) {
		for _, f := range files {
			fmt.Fprintf(w, "%-12s %s %s\n", name, f.Digest, printable(f.Path))
		}
	}
	show("image", v.Images)
	show("initrd", v.Initrds)
	show("file", v.Files)
	for i, value := range v.PCR4 {
		fmt.Fprintf(w, "PCR 4        %s%s\n", value, []string{"", " if the last is measured twice"}[i])
	}
}
