package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/keyturn/keyturn/signoff/dsse"
)

// A Client speaks to the agent of this node through its control socket.
type Client struct{ path string }

// Dial returns a client of the agent that listens at path. Each command takes
// a connection of its own.
func Dial(path string) (*Client, error) {
	c, err := net.Dial("unix", path)
	if err != nil {
		return nil, fmt.Errorf("agent: no agent answers: %w", err)
	}
	return &Client{path}, c.Close()
}

// ErrRefused is an agent's refusal; the text says why.
var ErrRefused = errors.New("the agent refused")

// Run asks for one use of the warrant with the executable at an absolute path
// on the node, resuming from a snapshot unless that is zero, and hands each
// event to see. When ctx ends before the use was
// claimed, it is not taken; after that the run goes on without a listener.
func (c *Client) Run(ctx context.Context, warrant Digest, executable string, resume Digest, see func(Event)) error {
	return c.do(ctx, Command{Op: OpRun, Warrant: warrant, Executable: executable, Resume: resume}, see)
}

// Halt tells the agent a halt: a bundle line.
func (c *Client) Halt(ctx context.Context, line []byte) error {
	return c.do(ctx, Command{Op: OpHalt, Line: string(line)}, func(Event) {})
}

// Status asks how the agent stands.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	var out *Status
	err := c.do(ctx, Command{Op: OpStatus}, func(e Event) {
		if e.Status != nil {
			out = e.Status
		}
	})
	if err == nil && out == nil {
		err = errors.New("agent: the answer holds no status")
	}
	return out, err
}

// do sends one command and reads its events to the last.
func (c *Client) do(ctx context.Context, command Command, see func(Event)) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", c.path)
	if err != nil {
		return fmt.Errorf("agent: no agent answers: %w", err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	b, err := dsse.Encode(command)
	if err != nil {
		return err
	}
	if _, err := conn.Write(append(b, '\n')); err != nil {
		return errors.Join(context.Cause(ctx), fmt.Errorf("agent: %w", err))
	}
	lines := bufio.NewScanner(conn)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e Event
		if err := dsse.Decode(lines.Bytes(), &e); err != nil {
			return fmt.Errorf("agent: read event: %w", err)
		}
		switch e.Event {
		case EventDone:
			return nil
		case EventRefused:
			return fmt.Errorf("%w: %s", ErrRefused, e.Text)
		}
		see(e)
	}
	return errors.Join(context.Cause(ctx), lines.Err(), errors.New("agent: the answer broke off"))
}
