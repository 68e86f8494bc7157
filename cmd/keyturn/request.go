package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyturn/keyturn/attest"
	"github.com/keyturn/keyturn/cmd/internal/config"
	"github.com/keyturn/keyturn/cmd/internal/ui"
	"github.com/keyturn/keyturn/hsm"
	"github.com/keyturn/keyturn/signoff"
	"github.com/keyturn/keyturn/signoff/api"
	"github.com/keyturn/keyturn/signoff/authority"
	"github.com/keyturn/keyturn/signoff/dsse"
)

// asking is what all requests have in common.
type asking struct {
	*app
	purpose string
	life    time.Duration
	out     string
}

func requestCmd(a *app) *cobra.Command {
	r := &asking{app: a}
	cmd := &cobra.Command{Use: "request", Short: "ask for an export, a launch or another act that needs sign-off"}
	f := cmd.PersistentFlags()
	f.StringVar(&r.purpose, "purpose", "", "why, for those who decide")
	f.DurationVar(&r.life, "valid", 12*time.Hour, "how long the request stands")
	f.StringVar(&r.out, "out", "", "write the signed request to this file instead of sending it")
	f.StringVar(&a.carry, "file", "", "work from a carried log instead of a coordinator")
	cmd.MarkPersistentFlagRequired("purpose")
	cmd.AddCommand(r.export(), r.launch(), r.enrol(), r.retire(), r.policy(), r.people(), r.resume(), r.adopt(), r.withdrawSets(), r.notaries(), r.ekRoots())
	return cmd
}

// ask makes, signs and sends the request whose part fill provides. fill sees
// the verified state.
func (r *asking) ask(ctx context.Context, action string, fill func(*signoff.Request, *authority.State) error) error {
	if r.carry == "" {
		if err := r.freshTime(ctx); err != nil {
			return err
		}
	}
	if err := r.sync(ctx, 1); err != nil {
		return err
	}
	me, err := r.me()
	if err != nil {
		return err
	}
	now := time.Now()
	doc := &signoff.Request{Charter: r.id, Action: action, Requester: me.ID, Purpose: r.purpose, Created: now.Unix(),
		Expiry: now.Add(r.life).Unix(), Nonce: nonce(), Seen: r.seen}
	if err := r.view(func(_ *authority.Authority, s *authority.State) error { return fill(doc, s) }); err != nil {
		return err
	}
	key, err := r.signer(ctx)
	if err != nil {
		return err
	}
	signed, err := signoff.Sign(ctx, key, doc)
	if err != nil {
		return err
	}
	var index *uint64
	if r.out != "" {
		_, err = r.keep(signed, r.out)
	} else {
		var out api.Appended
		out, err = r.submit(ctx, signed)
		index = &out.Index
	}
	if err != nil {
		return err
	}
	return r.Answer(struct {
		Request dsse.Digest `json:"request"`
		Index   *uint64     `json:"index,omitempty"`
		Path    string      `json:"path,omitempty"`
	}{signed.Digest(), index, r.out}, func(w writer) { fmt.Fprintf(w, "%s\n", signed.Digest()) })
}

func (r *asking) export() *cobra.Command {
	var object, recipient, keyFile, destination string
	cmd := &cobra.Command{Use: "export", Short: "ask to release sealed weights to an outside key", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			id, err := wholeObject(object)
			if err != nil {
				return err
			}
			key, err := config.ReadPublicKey(keyFile)
			if err != nil {
				return err
			}
			key.Class = hsm.Worst(key.Class, hsm.ClassSelfDeclared) // whatever its owner was shown
			return r.ask(cmd.Context(), signoff.ActionExport, func(q *signoff.Request, _ *authority.State) error {
				q.Export = &signoff.Export{Object: id, Recipient: recipient, RecipientKey: key, Destination: destination}
				return nil
			})
		}}
	f := cmd.Flags()
	f.StringVar(&object, "object", "", "object id, as weights info prints it")
	f.StringVar(&recipient, "recipient", "", "name the approvers know the recipient by")
	f.StringVar(&keyFile, "recipient-key", "", "file with the recipient's public key")
	f.StringVar(&destination, "destination", "", "where the copy goes: a medium's serial, a place")
	return require(cmd, "object", "recipient", "recipient-key", "destination")
}

// wholeObject reads the id of an object to ask for. A beginning of one will not
// do: anybody who belongs can register another object that begins so.
func wholeObject(id string) (dsse.Digest, error) {
	d, err := dsse.ParseDigest(id)
	if err != nil {
		return d, usage(ui.WithHint(fmt.Errorf("--object: %w", err), "give the whole id, as keyturn weights info prints it"))
	}
	return d, nil
}

func require(cmd *cobra.Command, flags ...string) *cobra.Command {
	for _, f := range flags {
		cmd.MarkFlagRequired(f)
	}
	return cmd
}

func (r *asking) launch() *cobra.Command {
	l := &signoff.Launch{}
	var executable string
	var objects, pool []string
	var limit time.Duration
	var output string
	cmd := &cobra.Command{Use: "launch -- ARGV...", Short: "ask to start one executable on nodes, exactly", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			digest, err := fileDigest(executable)
			if err != nil {
				return err
			}
			l.Executable, l.Argv, l.Seconds = digest, args, int64(limit/time.Second)
			if l.Output, err = ui.ParseBytes(output); err != nil {
				return usage(fmt.Errorf("--output: %w", err))
			}
			for _, o := range objects {
				id, err := wholeObject(o)
				if err != nil {
					return err
				}
				l.Objects = append(l.Objects, id)
			}
			return r.ask(cmd.Context(), signoff.ActionLaunch, func(q *signoff.Request, s *authority.State) error {
				for _, name := range pool {
					n, ok := s.NodeNamed(name)
					if !ok {
						return fmt.Errorf("no node named %q is enrolled", name)
					}
					l.Pool = append(l.Pool, n.ID)
				}
				q.Launch = l
				return nil
			})
		}}
	f := cmd.Flags()
	f.StringVar(&l.Name, "name", "", "name of the run")
	f.StringVar(&executable, "executable", "", "the program, a static executable")
	f.StringArrayVar(&l.Env, "env", nil, "NAME=value; the complete environment, repeat as needed")
	f.StringSliceVar(&objects, "object", nil, "object ids to open for the run")
	f.StringSliceVar(&pool, "node", nil, "names of the nodes it may run on")
	f.IntVar(&l.Uses, "uses", 1, "starts in all")
	f.DurationVar(&limit, "limit", time.Hour, "wall-clock limit of each start")
	f.StringVar(&output, "output", "0", "memory for snapshots, which are sealed as new objects, such as 200GB")
	return require(cmd, "name", "executable", "object", "node")
}

func (r *asking) enrol() *cobra.Command {
	var name, file string
	var again bool
	cmd := &cobra.Command{Use: "enrol", Short: "ask to admit a node", Args: cobra.NoArgs,
		Long: `Enrol asks to admit a machine with the keys that its agent made. With --again it
gives a machine that is enrolled, and lost its agent's directory, its new keys under
its old name; launches approved before are lost to it. Another TPM, such as that of
another main board, makes it another node: retire the old one, and enrol the new
one under another name.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			blob, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			enrolment, err := attest.ParseEnrolment(blob)
			if err != nil {
				return err
			}
			ek, err := attest.ReadEKCert(enrolment.EKCert)
			if err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
			client, err := r.coordinator()
			if err != nil {
				return err
			}
			digest, err := client.PutBlob(cmd.Context(), blob)
			if err != nil {
				return err
			}
			return r.ask(cmd.Context(), signoff.ActionEnrol, func(q *signoff.Request, s *authority.State) error {
				q.Enrol = &signoff.Enrol{Name: name, Node: dsse.Digest(ek.ID), Enrolment: digest}
				if n, ok := s.Nodes[q.Enrol.Node]; ok && again {
					q.Enrol.Replaces = n.Enrolment
				}
				return nil
			})
		}}
	cmd.Flags().StringVar(&name, "name", "", "name of the node")
	cmd.Flags().StringVar(&file, "enrolment", "", "file that keyturn-agent enrolment wrote")
	cmd.Flags().BoolVar(&again, "again", false, "the machine is enrolled; give it these keys instead of those it has")
	return require(cmd, "name", "enrolment")
}

func (r *asking) retire() *cobra.Command {
	var name string
	cmd := &cobra.Command{Use: "retire", Short: "ask to put a node out for good", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return r.ask(cmd.Context(), signoff.ActionRetire, func(q *signoff.Request, s *authority.State) error {
				n, ok := s.NodeNamed(name)
				if !ok {
					return fmt.Errorf("no node named %q is enrolled", name)
				}
				q.Retire = &signoff.Retire{Node: n.ID}
				return nil
			})
		}}
	cmd.Flags().StringVar(&name, "name", "", "name of the node")
	return require(cmd, "name")
}

func (r *asking) policy() *cobra.Command {
	var file string
	cmd := &cobra.Command{Use: "policy", Short: "ask to replace the policy", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			text, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			return r.ask(cmd.Context(), signoff.ActionPolicyChange, func(q *signoff.Request, _ *authority.State) error {
				q.Policy = &signoff.PolicyChange{Policy: string(text)}
				return nil
			})
		}}
	cmd.Flags().StringVar(&file, "policy", "", "file with the new policy, YAML")
	return require(cmd, "policy")
}

func (r *asking) resume() *cobra.Command {
	var halts []string
	cmd := &cobra.Command{Use: "resume", Short: "ask to lift halts, each by name", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return r.ask(cmd.Context(), signoff.ActionResume, func(q *signoff.Request, _ *authority.State) error {
				q.Resume = &signoff.Resume{}
				for _, h := range halts {
					id, err := dsse.ParseDigest(h)
					if err != nil {
						return err
					}
					q.Resume.Halts = append(q.Resume.Halts, id)
				}
				return nil
			})
		}}
	cmd.Flags().StringSliceVar(&halts, "halt", nil, "digests of the halts to lift")
	return require(cmd, "halt")
}

func (r *asking) adopt() *cobra.Command {
	var file string
	cmd := &cobra.Command{Use: "reference-adopt", Short: "ask to put a reference set into force", Args: cobra.NoArgs,
		Long: `Reference-adopt asks that nodes be judged by a reference set that keyturn
reference made, beside those in force. Of one name the two highest versions that
have begun count, so that nodes can be updated one after the other. Nothing else
brings an older version back than the same values under a higher number.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			set, blob, err := readSet(file)
			if err != nil {
				return err
			}
			client, err := r.coordinator()
			if err != nil {
				return err
			}
			digest, err := client.PutBlob(cmd.Context(), blob)
			if err != nil {
				return err
			}
			return r.ask(cmd.Context(), signoff.ActionReferenceAdopt, func(q *signoff.Request, _ *authority.State) error {
				q.Adopt = &signoff.ReferenceAdopt{Name: set.Name, Version: set.Version, Set: digest}
				return nil
			})
		}}
	cmd.Flags().StringVar(&file, "set", "", "file with the reference set")
	return require(cmd, "set")
}

func (r *asking) withdrawSets() *cobra.Command {
	var sets []string
	cmd := &cobra.Command{Use: "reference-withdraw", Short: "ask to end reference sets before their time", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return r.ask(cmd.Context(), signoff.ActionReferenceWithdraw, func(q *signoff.Request, _ *authority.State) error {
				q.Withdraw = &signoff.ReferenceWithdraw{}
				for _, s := range sets {
					id, err := dsse.ParseDigest(s)
					if err != nil {
						return err
					}
					q.Withdraw.Sets = append(q.Withdraw.Sets, id)
				}
				return nil
			})
		}}
	cmd.Flags().StringSliceVar(&sets, "set", nil, "digests of the sets to end, as keyturn reference list prints them")
	return require(cmd, "set")
}

func (r *asking) notaries() *cobra.Command {
	var add, remove []string
	var faults int
	cmd := &cobra.Command{Use: "notaries", Short: "ask to change who the notaries are, or to give them fresh shares", Args: cobra.NoArgs,
		Long: `Notaries asks for the next term: those in office without the ones removed and
with the ones added. With neither, the same notaries get fresh shares. The
group's public key stays, and so does every object: the notaries deal their
shares of objects on to those in office by themselves. Keep who leaves running
until keyturn status says no more that shares are on their way.

A file to add holds one notary as a founding file lists it: name, organisation,
and the public halves of its signing, exchange and witness keys. Its
keyturn-notary has to run, with "entry" in its configuration naming that file,
before the request can be granted.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return r.ask(cmd.Context(), signoff.ActionNotaries, func(q *signoff.Request, s *authority.State) (err error) {
				q.Notaries, err = nextTerm(s, add, remove, faults)
				return err
			})
		}}
	f := cmd.Flags()
	f.StringArrayVar(&add, "add", nil, "file with a notary to add, JSON; may be repeated")
	f.StringArrayVar(&remove, "remove", nil, "name of a notary to remove; may be repeated")
	f.IntVar(&faults, "faults", 0, "how many may be hostile from then on (default as now)")
	return cmd
}

func nextTerm(s *authority.State, add, remove []string, faults int) (*signoff.NotaryChange, error) {
	now := s.Council()
	n := &signoff.NotaryChange{Term: s.Term().Number, Faults: faults}
	if faults == 0 {
		n.Faults = now.Faults
	}
	for _, name := range remove {
		if !slices.ContainsFunc(now.Notaries, func(y signoff.Notary) bool { return y.Name == name }) {
			return nil, fmt.Errorf("no notary named %q is in office", name)
		}
	}
	for _, y := range now.Notaries {
		if !slices.Contains(remove, y.Name) {
			n.Notaries = append(n.Notaries, y)
		}
	}
	for _, file := range add {
		y, err := config.ReadNotary(file)
		if err != nil {
			return nil, err
		}
		n.Notaries = append(n.Notaries, *y)
	}
	return n, nil
}

func haltCmd(a *app) *cobra.Command {
	var everything bool
	var request, node, reason, out string
	cmd := &cobra.Command{Use: "halt", Short: "stop everything, one request or one node, at once", Args: cobra.NoArgs,
		Long: `Halt needs one person and no checkpoint. It is pushed to the nodes before it is
in the log; with --out it is written to a file, to be carried to the nodes
(keyturn node halt FILE) when the network or the coordinator is not to be
trusted. Only an approved resume that names the halt lifts it.

Whole digests are taken as they are. Of a node's name, or the beginning of a
request's digest, the log says whose it is, and has to be reachable.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if n := len(request) + len(node); everything == (n > 0) || request != "" && node != "" {
				return usage(ui.WithHint(errors.New("name what to halt"), "one of --everything, --request REQUEST and --node NODE"))
			}
			me, err := a.me()
			if err != nil {
				return err
			}
			h := &signoff.Halt{Charter: a.id, Person: me.ID, Everything: everything, Reason: reason, Created: time.Now().Unix(), Nonce: nonce()}
			if h.Request, err = a.haltedDigest(cmd.Context(), request, a.find); err != nil {
				return err
			}
			if h.Node, err = a.haltedDigest(cmd.Context(), node, a.nodeNamed); err != nil {
				return err
			}
			key, err := a.signer(cmd.Context())
			if err != nil {
				return err
			}
			signed, err := signoff.Sign(cmd.Context(), key, h)
			if err != nil {
				return err
			}
			if out == "" {
				return a.sendHalt(cmd.Context(), signed)
			}
			if err := writeNew(out, append(signed.Line(), '\n')); err != nil {
				return err
			}
			a.Note("%s: on each node keyturn node halt %s; then keyturn submit %s", out, out, out)
			return a.answerHalt(signed, nil, out)
		}}
	f := cmd.Flags()
	f.BoolVar(&everything, "everything", false, "stop every export and every run")
	f.StringVar(&request, "request", "", "stop one request")
	f.StringVar(&node, "node", "", "stop one node, by name or id")
	f.StringVar(&reason, "reason", "", "why, for the log")
	f.StringVar(&out, "out", "", "write the halt to this file instead of sending it")
	return require(cmd, "reason")
}

// haltedDigest is what a halt is of: a digest, for which no log is needed, or
// what find finds in the log under that name.
func (a *app) haltedDigest(ctx context.Context, name string, find func(string) (dsse.Digest, error)) (dsse.Digest, error) {
	if d, err := dsse.ParseDigest(name); name == "" || err == nil {
		return d, nil
	}
	if err := a.sync(ctx, 1); err != nil {
		return dsse.Digest{}, ui.WithHint(err, "without the log give the whole digest, or halt --everything")
	}
	return find(name)
}

// nodeNamed finds a node by its name.
func (a *app) nodeNamed(name string) (id dsse.Digest, err error) {
	err = a.view(func(_ *authority.Authority, s *authority.State) error {
		n, ok := s.NodeNamed(name)
		if !ok {
			return ui.WithHint(fmt.Errorf("no node named %.80q is enrolled", name), "keyturn node status lists them")
		}
		id = n.ID
		return nil
	})
	return id, err
}

// sendHalt pushes first and appends then: nodes must not wait for the log.
func (a *app) sendHalt(ctx context.Context, s *signoff.Signed) error {
	client, err := a.coordinator()
	if err != nil {
		return err
	}
	if err := client.Send(ctx, "halts", s.Line()); err != nil {
		a.Note("could not push the halt to the nodes, going on: %v", err)
	}
	out, err := a.submit(ctx, s)
	if err != nil {
		return ui.WithHint(err, "a halt that is not final may reach no node: write it with --out FILE, carry it to the nodes and run keyturn node halt FILE there")
	}
	return a.answerHalt(s, &out.Index, "")
}

func (a *app) answerHalt(s *signoff.Signed, index *uint64, path string) error {
	return a.Answer(struct {
		Halt  dsse.Digest `json:"halt"`
		Index *uint64     `json:"index,omitempty"`
		Path  string      `json:"path,omitempty"`
	}{s.Digest(), index, path}, func(w writer) { fmt.Fprintf(w, "%s\n", s.Digest()) })
}
