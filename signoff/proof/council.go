package proof

import "github.com/keyturn/keyturn/signoff"

// TrustIn is what a checkpoint of the named log is held to under its log key
// and a council; while one council hands over to another, under both.
func TrustIn(name string, logKey signoff.PublicKey, councils ...signoff.Council) (Trust, error) {
	key, err := logKey.Ed25519()
	if err != nil {
		return Trust{}, err
	}
	t := Trust{Origin: name, LogName: name, LogKey: key}
	for i, c := range councils {
		g := Cosigners{Quorum: c.Quorum()}
		for _, n := range c.Notaries {
			key, err := n.Witness.Ed25519()
			if err != nil {
				return Trust{}, err
			}
			g.Witnesses = append(g.Witnesses, Witness{Name: n.Name, Key: key})
		}
		if i == 0 {
			t.Witnesses, t.Quorum = g.Witnesses, g.Quorum
		} else {
			t.Also = append(t.Also, g)
		}
	}
	return t, nil
}
