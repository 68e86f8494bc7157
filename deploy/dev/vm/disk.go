package vm

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

// WriteESP makes a disk with one EFI system partition, on which the image
// stands where firmware looks for it. Beside it lie the files given, where
// systemd-stub looks for credentials and extensions of the image.
func WriteESP(disk, image string, beside ...string) error {
	const start, size = 1 << 20, 96 << 20
	f, err := os.Create(disk)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return err
	}
	// Identifiers are fixed: the firmware measures the partition table.
	table := exec.Command("sfdisk", "--quiet", disk)
	table.Stdin = strings.NewReader("label: gpt\nlabel-id: 6B657974-7572-4E00-8000-000000000001\n" +
		"start=2048, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, uuid=6B657974-7572-4E00-8000-000000000002\n")
	if out, err := table.CombinedOutput(); err != nil {
		return fmt.Errorf("vm: sfdisk: %w: %s", err, bytes.TrimSpace(out))
	}
	at := disk + "@@" + strconv.Itoa(start)
	const boot = "::/EFI/BOOT"
	err = errors.Join(command("mformat", "-i", at, "-T", strconv.Itoa((size-2*start)/512), "-N", "6b657974", "::"),
		command("mmd", "-i", at, "::/EFI", boot), command("mcopy", "-i", at, image, boot+"/BOOTX64.EFI"))
	if err != nil || len(beside) == 0 {
		return err
	}
	const extra = boot + "/BOOTX64.EFI.extra.d"
	return errors.Join(command("mmd", "-i", at, extra), command("mcopy", append(append([]string{"-i", at}, beside...), extra)...))
}

// WriteData makes a disk with what is below dir.
func WriteData(disk, dir string) error {
	return errors.Join(os.RemoveAll(disk), command("mke2fs", "-q", "-t", "ext4", "-d", dir, disk, "256M"))
}
