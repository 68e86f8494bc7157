package notary

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/hsm/file"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/dsse"
	"github.com/keyturn/keyturn/signoff/proof"
)

// Anybody can show a notary what it cosigned, as often as he likes and each time
// with other signatures beside its own. It is noted once; what it did not cosign,
// and what is for another, is not.
func TestAttackFloodOfReminders(t *testing.T) {
	key := func(name string) hsm.Key {
		uri := "file:" + filepath.Join(t.TempDir(), name)
		if _, err := file.Generate(uri, hsm.KindEd25519); err != nil {
			t.Fatal(err)
		}
		k, err := file.Open(uri, nil)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	own, other, log := key("own"), key("other"), key("log")
	n := &Notary{cfg: Config{Witness: own}, id: Digest{1}, name: "n1"}
	note := func(size uint64, by hsm.Key, extra int) string {
		b, err := proof.SignCheckpoint(t.Context(), proof.Checkpoint{Origin: "log", Size: size, Root: Digest{byte(size)}, State: Digest{1}}, "log", log)
		if err != nil {
			t.Fatal(err)
		}
		for name, k := range map[string]hsm.Key{"n1": by, fmt.Sprintf("stranger%d", extra): other} {
			line, err := proof.Cosign(t.Context(), b, name, k, 1)
			if err == nil {
				b, err = proof.AddCosignature(b, line)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		return string(b)
	}
	var mail [][]byte
	send := func(to Digest, cosigned string) {
		m, err := dsse.Encode(reminder{to, cosigned})
		if err != nil {
			t.Fatal(err)
		}
		mail = append(mail, m)
	}
	for i := range 200 {
		send(n.id, note(7, own, i))
	}
	send(n.id, note(8, own, 0))
	send(n.id, note(9, other, 0))
	send(Digest{2}, note(10, own, 0))
	mail = append(mail, nil, []byte("{}"))
	reminded := map[signoff.Seen]bool{}
	for range 2 {
		n.takeReminders(mail, reminded)
	}
	if len(reminded) != 2 || !reminded[signoff.Seen{Size: 7, Root: Digest{7}}] || !reminded[signoff.Seen{Size: 8, Root: Digest{8}}] {
		t.Errorf("%d checkpoints are noted: %v", len(reminded), reminded)
	}
}
