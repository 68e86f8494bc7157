package ima_test

import (
	"encoding/hex"
	"fmt"
	"log"
	"os"

	"github.com/keyturn/keyturn/attest/ima"
)

// A quote of PCR 10 proves the entries that lead to it, and rules judge those.
func Example() {
	list, err := os.ReadFile("../testdata/local-boot/uki-systemd-stub.ima")
	if err != nil {
		log.Fatal(err)
	}
	quoted, err := hex.DecodeString("5debbd286936c32a63ac8c5ea74acc88bf3beecfb2eb0869fd5f4f0a7b943834")
	if err != nil {
		log.Fatal(err)
	}
	state, err := ima.NewState("sha256")
	if err != nil {
		log.Fatal(err)
	}
	entries, err := state.Advance(list, quoted)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(entries), "entries proved, up to byte", state.Offset)
	judge, err := ima.NewJudge(ima.Rules{
		Digests: []string{"sha256:dbea8ba031621b505023a30fb99fbfdd22aa24d1c78aa8ea83f19c31f0bbcaff"},
		Ignore:  []string{"/tmp/"},
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(judge.Check(entries[1:])) // the first is the boot aggregate: see BootAggregate
	// Output:
	// 6 entries proved, up to byte 609
	// ima: entry 3, "/bin/busybox", sha256:3d9f2889d6782537624a4e1a10e68a2ddd53e0ee8bac02676f27308f42ec6bf6: no rule allows it
}
