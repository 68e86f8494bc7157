package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// makeModel writes safetensors with random weights in four files.
func (s *stage) makeModel() error {
	if err := os.MkdirAll(s.path("model"), 0o755); err != nil {
		return err
	}
	const files = 4
	perFile := s.modelBytes / files
	for i := range files {
		header := fmt.Sprintf(`{"layer.%d.weight":{"dtype":"BF16","shape":[%d,1024],"data_offsets":[0,%d]}}`, i, perFile/2/1024, perFile)
		header += strings.Repeat(" ", (8-len(header)%8)%8)
		f, err := os.Create(s.path("model", fmt.Sprintf("model-%05d-of-%05d.safetensors", i+1, files)))
		if err != nil {
			return err
		}
		err = binary.Write(f, binary.LittleEndian, uint64(len(header)))
		if err == nil {
			_, err = io.WriteString(f, header)
		}
		if err == nil {
			_, err = io.CopyN(f, rand.Reader, int64(perFile))
		}
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return os.WriteFile(s.path("model", "config.json"), []byte("{\"layers\": 4}\n"), 0o644)
}

func (s *stage) sealWeights(ctx context.Context) error {
	if err := s.makeModel(); err != nil {
		return err
	}
	r := s.as(ctx, "erin", "", "weights", "seal", s.path("model"), "--out", s.path("model.sealed"), "--name", "demo model", "--json")
	var v struct {
		Object string `json:"object"`
	}
	if r.code == 0 {
		if err := json.Unmarshal([]byte(r.out), &v); err != nil {
			return err
		}
	}
	s.object = v.Object
	return s.allowed(fmt.Sprintf("seal %d MB of weights", s.modelBytes>>20), "object "+v.Object, r)
}

func (s *stage) exportStory(ctx context.Context) error {
	r := s.exec(ctx, "partner", "", "", "weights", "recipient", "--out", s.path("partner.key"))
	if r.code != 0 {
		return fmt.Errorf("recipient's key: %s", r.err)
	}
	if err := os.WriteFile(s.path("partner.pub.json"), []byte(r.out), 0o644); err != nil {
		return err
	}
	id, err := s.ask(ctx, "alice", "joint evaluation with the partner lab", "export", "--object", s.object, "--recipient", "partner lab",
		"--recipient-key", s.path("partner.pub.json"), "--destination", "disk serial DEMO-0001")
	if err != nil {
		return err
	}
	s.export = id
	s.note("alice asks for an export", "allowed", id, true)

	export := func() result {
		return s.as(ctx, "alice", "", "weights", "export", id, "--sealed", s.path("model.sealed"), "--out", s.path("exported"))
	}
	s.refused("no approvals", export(), "not satisfied")
	if err := s.approvals(ctx, id, "bob", "carol"); err != nil {
		return err
	}
	s.refused("one approval short", export(), "not satisfied")
	if err := s.approvals(ctx, id, "alice"); err != nil {
		return err
	}
	s.refused("three approvals, but one is the requester's own", export(), "not the requester")
	if err := s.edited(ctx, id); err != nil {
		return err
	}
	if err := s.allowed("erin of another organisation approves", "the third that counts", s.decide(ctx, "erin", "approve", id)); err != nil {
		return err
	}
	if err := s.allowed("the notaries sign the warrant", "warrant-export.json", s.as(ctx, "alice", "", "warrant", "get", id, "--out", s.path("warrant-export.json"))); err != nil {
		return err
	}
	if err := s.openssl(ctx); err != nil {
		return err
	}
	if err := s.allowed("alice exports", "exported/", export()); err != nil {
		return err
	}
	s.refused("the same warrant handed in again", s.as(ctx, "alice", "", "submit", s.path("warrant-export.json")), "already took effect")
	return s.receive(ctx)
}

// edited shows a request to two kinds of forger: one who changes where the
// weights go, and a coordinator that changes the log it hands out.
func (s *stage) edited(ctx context.Context, id string) error {
	if r := s.as(ctx, "alice", "", "carry", "--out", s.path("carried.json")); r.code != 0 {
		return fmt.Errorf("carry: %s", r.err)
	}
	b, err := os.ReadFile(s.path("carried.json"))
	if err != nil {
		return err
	}
	var carried map[string]any
	if err := json.Unmarshal(b, &carried); err != nil {
		return err
	}
	entries, forged := carried["entries"].([]any), ""
	for i, e := range entries {
		if changed, ok := redirect(e.(string)); ok {
			forged, entries[i] = changed, changed
		}
	}
	if forged == "" {
		return errors.New("the request is not in the carried log")
	}
	out, err := json.Marshal(carried)
	if err != nil {
		return err
	}
	if err := errors.Join(os.WriteFile(s.path("carried-forged.json"), out, 0o644), os.WriteFile(s.path("forged.json"), []byte(forged+"\n"), 0o644)); err != nil {
		return err
	}
	s.refused("a changed destination under alice's signature", s.as(ctx, "alice", "", "submit", s.path("forged.json")), "verify")
	s.refused("a coordinator that edits the request in the log it shows", s.as(ctx, "carol", "", "show", id, "--file", s.path("carried-forged.json")), "rewritten")
	return nil
}

// redirect changes the destination in a request's line and keeps the rest.
func redirect(line string) (string, bool) {
	var bundle map[string]any
	if json.Unmarshal([]byte(line), &bundle) != nil {
		return "", false
	}
	env := bundle["dsseEnvelope"].(map[string]any)
	old := env["payload"].(string)
	payload, err := base64.StdEncoding.DecodeString(old)
	if err != nil || !bytes.Contains(payload, []byte("disk serial DEMO-0001")) || !bytes.Contains(payload, []byte("keyturn.dev/request/")) {
		return "", false
	}
	payload = bytes.Replace(payload, []byte("disk serial DEMO-0001"), []byte("disk serial EVIL-6666"), 1)
	return strings.Replace(line, old, base64.StdEncoding.EncodeToString(payload), 1), true
}

// openssl checks the group signature with a program that is not ours.
func (s *stage) openssl(ctx context.Context) error {
	group := s.as(ctx, "alice", "", "warrant", "group")
	pae := s.as(ctx, "alice", "", "warrant", "pae", s.path("warrant-export.json"), "--sig", s.path("warrant-export.sig"))
	if group.code != 0 || pae.code != 0 {
		return fmt.Errorf("warrant pae: %s%s", group.err, pae.err)
	}
	if err := errors.Join(os.WriteFile(s.path("group.pem"), []byte(group.out), 0o644), os.WriteFile(s.path("warrant-export.pae"), []byte(pae.out), 0o644)); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "openssl", "pkeyutl", "-verify", "-pubin", "-inkey", s.path("group.pem"), "-rawin", "-in", s.path("warrant-export.pae"), "-sigfile", s.path("warrant-export.sig"))
	r := runCommand(cmd, "", "")
	return s.allowed("openssl checks the group signature", strings.TrimSpace(r.out), r)
}

// receive opens the export on the recipient's side with stock age.
func (s *stage) receive(ctx context.Context) error {
	r := s.exec(ctx, "partner", "", "", "weights", "identity", "--charter", s.charter, "--release", s.path("exported", "release.json"),
		"--key", "file:"+s.path("partner.key"), "--out", s.path("partner.identity"))
	if r.code != 0 {
		return fmt.Errorf("identity: %s", r.err)
	}
	if err := os.MkdirAll(s.path("recipient"), 0o755); err != nil {
		return err
	}
	files, err := filepath.Glob(s.path("exported", "files", "*.age"))
	if err != nil || len(files) == 0 {
		return fmt.Errorf("no files in the export: %v", err)
	}
	for _, f := range files {
		cmd := exec.CommandContext(ctx, "age", "-d", "-i", s.path("partner.identity"), "-o", s.path("recipient", strings.TrimSuffix(filepath.Base(f), ".age")), f)
		cmd.Env = append(s.env("partner"), "PATH="+s.bin+":"+os.Getenv("PATH"))
		if r := runCommand(cmd, "", ""); r.code != 0 {
			return s.allowed("the partner opens the export with stock age", "", r)
		}
	}
	cmd := exec.CommandContext(ctx, "sha256sum", "--strict", "-c", s.path("exported", "SHA256SUMS"))
	cmd.Dir = s.path("recipient")
	r = runCommand(cmd, "", "")
	return s.allowed("the partner opens the export with stock age", fmt.Sprintf("sha256sum -c: %d files clean", strings.Count(r.out, ": OK")), r)
}

func (s *stage) vetoStory(ctx context.Context) error {
	if _, err := s.keepLog("old"); err != nil {
		return err
	}
	id, err := s.ask(ctx, "alice", "a second copy", "export", "--object", s.object, "--recipient", "partner lab",
		"--recipient-key", s.path("partner.pub.json"), "--destination", "disk serial DEMO-0002")
	if err != nil {
		return err
	}
	if err := s.approvals(ctx, id, "bob"); err != nil {
		return err
	}
	if err := s.allowed("dave of safety rejects a second export", "a veto", s.decide(ctx, "dave", "reject", id)); err != nil {
		return err
	}
	s.refused("an approval of the vetoed request", s.decide(ctx, "carol", "approve", id), "vetoed")
	s.refused("an export of the vetoed request", s.as(ctx, "alice", "", "weights", "export", id, "--sealed", s.path("model.sealed"), "--out", s.path("exported-2")), "vetoed")
	return nil
}
