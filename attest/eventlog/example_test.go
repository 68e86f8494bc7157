package eventlog_test

import (
	"encoding/hex"
	"fmt"
	"log"
	"os"

	"github.com/keyturn/keyturn/attest/eventlog"
)

// A log is worth something only after it explained what a TPM quoted.
func Example() {
	data, err := os.ReadFile("../testdata/local-boot/uki-systemd-stub.bios")
	if err != nil {
		log.Fatal(err)
	}
	quoted := make(map[int][]byte) // from a verified quote
	for pcr, value := range map[int]string{
		4:  "a00c23caee457612ce5ab57234a338620fc533909fc19420ae6994c1e5c68665",
		7:  "65caf8dd1e0ea7a6347b635d2b379c93b9a1351edc2afc3ecda700e534eb3068",
		11: "26b3d3afbf10021c7ed10fa1bd844a9c03d2b1bff07e8170c60bafa3d05a1c26",
	} {
		if quoted[pcr], err = hex.DecodeString(value); err != nil {
			log.Fatal(err)
		}
	}
	l, err := eventlog.Parse(data)
	if err != nil {
		log.Fatal(err)
	}
	if err := l.Explain("sha256", quoted); err != nil {
		log.Fatal(err)
	}
	fmt.Println("secure boot", l.SecureBoot("sha256").State)
	sections, err := l.UKISections("sha256")
	if err != nil {
		log.Fatal(err)
	}
	for _, s := range sections {
		fmt.Printf("%s %x…\n", s.Name, s.Digest[:8])
	}
	quoted[4][0] ^= 1
	fmt.Println(l.Explain("sha256", quoted) != nil)
	// Output:
	// secure boot off
	// .linux 51349501a3d1ff83…
	// .osrel 61713fdec9db2e2f…
	// .cmdline 7b0d45515923b92b…
	// .initrd 5bd7e32b104aff2b…
	// true
}
