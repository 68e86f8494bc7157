// Package config reads the configuration files of all programs. It is the
// only package that knows viper. Each program's file is one struct, whose
// field comments are the manual; unknown keys are refused, and there is no
// key that skips a check. Secrets never stand in a file: keys are URIs, and
// PINs come from a prompt, a file descriptor or a service credential.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/viper"

	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/api"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// Cluster is what every program needs to know of the cluster.
type Cluster struct {
	// Charter is the trust anchor, sha256:<hex>. Everything else is checked
	// against it.
	Charter string `mapstructure:"charter"`
	// CharterFile holds the charter's payload (charter.json). A relative
	// path is relative to the configuration file.
	CharterFile string `mapstructure:"charterFile"`
}

// Person is the file of the command line (keyturn).
type Person struct {
	Cluster `mapstructure:",squash"`
	// Name is who you are in the charter. Empty for auditors.
	Name string `mapstructure:"name"`
	// Signing and Exchange are the URIs of your two keys.
	Signing  string `mapstructure:"signing"`
	Exchange string `mapstructure:"exchange"`
	// MLKEM768 is the file with the second half of a hybrid exchange key, and
	// Seal the URI of the key that it is sealed by.
	MLKEM768 string `mapstructure:"mlkem768"`
	Seal     string `mapstructure:"seal"`
	// State is a directory for what was last seen of the log and for proofs.
	State string `mapstructure:"state"`
}

// Notary is the file of keyturn-notary.
type Notary struct {
	Cluster `mapstructure:",squash"`
	// Name is the notary's in the charter or in Entry.
	Name string `mapstructure:"name"`
	// Entry is a file with the notary as a request lists it that brings it
	// in; empty for a notary of the charter.
	Entry string `mapstructure:"entry"`
	// Dir keeps what must survive a restart.
	Dir string `mapstructure:"dir"`
	// The URIs of the notary's keys.
	Signing  string `mapstructure:"signing"`
	Exchange string `mapstructure:"exchange"`
	Witness  string `mapstructure:"witness"`
	Seal     string `mapstructure:"seal"`
	// Fuse is the NV index, 0x01800000 to 0x01bfffff, of a counter in this
	// host's TPM without which nothing in Dir is used: a copy of Dir runs
	// nowhere. Empty: no fuse, and Dir was made without one.
	Fuse string `mapstructure:"fuse"`
}

// Coordinator is the file of keyturnd.
type Coordinator struct {
	Cluster `mapstructure:",squash"`
	// Listen is the address to serve on, host:port.
	Listen string `mapstructure:"listen"`
	// Dir keeps etcd's data and, below log/, tiles and blobs.
	Dir string `mapstructure:"dir"`
	// Genesis holds the charter and its acceptances, one bundle a line; read
	// only while the log is empty.
	Genesis string `mapstructure:"genesis"`
	// Etcd lists endpoints of an etcd of your own; empty runs one inside.
	Etcd []string `mapstructure:"etcd"`
	// The URIs of the log key (Ed25519) and the TLS key (P-256).
	LogKey string `mapstructure:"logKey"`
	// LogKeyPublic is a file with the public half of the log key, as key new
	// prints it, where a recovery replaced the charter's.
	LogKeyPublic string `mapstructure:"logKeyPublic"`
	TLSKey       string `mapstructure:"tlsKey"`
	// TLSVaultRole, MOUNT/sign/ROLE, has Vault's PKI engine sign the TLS key's
	// certificate, for tools that look at certificates; empty: self-signed.
	TLSVaultRole string `mapstructure:"tlsVaultRole"`
}

// Agent is the file of keyturn-agent.
type Agent struct {
	Cluster `mapstructure:",squash"`
	// TPM is /dev/tpmrm0, or unix:PATH of an emulator.
	TPM string `mapstructure:"tpm"`
	// Dir keeps the node's key blobs and what must survive a restart.
	Dir string `mapstructure:"dir"`
	// EventLog is the firmware's log, binary_bios_measurements.
	EventLog string `mapstructure:"eventLog"`
	// IMA is the kernel's measurement list, binary_runtime_measurements; where
	// Linux shows it if empty. It is read if reference sets have rules for files.
	IMA string `mapstructure:"ima"`
	// BootApproval is the file with the boot policy approved for this node.
	BootApproval string `mapstructure:"bootApproval"`
	// Objects lists directories of sealed weights on this node.
	Objects []string `mapstructure:"objects"`
	// Snapshots is the directory that gets sealed snapshots of runs.
	Snapshots string `mapstructure:"snapshots"`
	// Socket is where the agent listens for commands on the node.
	Socket string `mapstructure:"socket"`
	// Cgroup is the group below the cgroup v2 mount in which runs live;
	// keyturn if empty. Two agents on one machine need two.
	Cgroup string `mapstructure:"cgroup"`
}

// Load reads the YAML file at path into v, a pointer to one of the structs
// above. Unknown keys are an error.
func Load(path string, v any) error {
	r := viper.New()
	r.SetConfigFile(path)
	r.SetConfigType("yaml")
	if err := r.ReadInConfig(); err != nil {
		return fmt.Errorf("config: read %s: %w", path, err)
	}
	if err := r.UnmarshalExact(v); err != nil {
		return fmt.Errorf("config: %s: %w", path, err)
	}
	return nil
}

// Beside returns path, taken as relative to the configuration file.
func Beside(file, path string) string {
	if path == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(filepath.Dir(file), path)
}

// Anchor reads the charter that the file names and checks it against the
// digest beside it.
func (c Cluster) Anchor(file string) (*signoff.Charter, dsse.Digest, error) {
	if c.Charter == "" || c.CharterFile == "" {
		return nil, dsse.Digest{}, fmt.Errorf("config: %s: charter and charterFile are both needed", file)
	}
	want, err := dsse.ParseDigest(c.Charter)
	if err != nil {
		return nil, want, fmt.Errorf("config: %s: charter: %w", file, err)
	}
	payload, err := os.ReadFile(Beside(file, c.CharterFile))
	if err != nil {
		return nil, want, fmt.Errorf("config: %s: charterFile: %w", file, err)
	}
	charter, err := ReadCharter(payload, want)
	return charter, want, err
}

// ReadNotary reads a file with one notary, as a founding file lists it.
func ReadNotary(file string) (*signoff.Notary, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	y := new(signoff.Notary)
	if err := dsse.Decode(bytes.TrimSpace(b), y); err != nil {
		return nil, fmt.Errorf("config: %s is not a notary: %w", file, err)
	}
	return y, nil
}

// ReadCharter parses a charter's payload and checks its digest.
func ReadCharter(payload []byte, want dsse.Digest) (*signoff.Charter, error) {
	if got := (&dsse.Envelope{Payload: payload}).Digest(); got != want {
		return nil, fmt.Errorf("config: the charter file has digest %s, the anchor is %s: do not go on until you know which is right", got, want)
	}
	doc, err := signoff.Read(payload)
	if err != nil {
		return nil, err
	}
	charter, ok := doc.(*signoff.Charter)
	if !ok {
		return nil, errors.New("config: the charter file holds another document")
	}
	return charter, nil
}

// ReadPublicKey reads a public key as keyturn key new and key show print it.
func ReadPublicKey(path string) (signoff.PublicKey, error) {
	var k signoff.PublicKey
	b, err := os.ReadFile(path)
	if err != nil {
		return k, fmt.Errorf("config: public key: %w", err)
	}
	if err := dsse.Decode(b, &k); err != nil {
		return k, fmt.Errorf("config: %s is not a public key file: %w", path, err)
	}
	return k, nil
}

// Endpoints lists the charter's coordinators.
func Endpoints(c *signoff.Charter) []api.Endpoint {
	var out []api.Endpoint
	for _, co := range c.Coordinators {
		out = append(out, api.Endpoint{URL: co.URL, TLS: co.TLS})
	}
	return out
}
