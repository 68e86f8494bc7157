package tpm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/keyturn/keyturn/hsm"
)

const (
	maxMessage = 4096             // TPM commands and responses (PC Client profile)
	headerSize = 10               // tag, size, code
	maxPause   = 2 * time.Second  // between two tries of one command; they double from a millisecond
	maxAnswer  = 90 * time.Second // an RSA primary key on a slow TPM; no other command takes half as long
)

// conn is a persistent connection: go-tpm's own dials for each command, which
// would end the session of whatever keeps state per connection.
type conn struct {
	rwc    io.ReadWriteCloser
	stream bool  // a socket: responses may come in pieces
	broken error // set for good once a response was lost, for the next would be taken for it
}

func dial(path string) (*conn, error) {
	if socket, isSocket := strings.CutPrefix(path, "unix:"); isSocket {
		if !filepath.IsAbs(socket) {
			return nil, fmt.Errorf("tpm: open %q: the socket's path must be absolute", path)
		}
		c, err := net.Dial("unix", socket)
		if err != nil {
			return nil, fmt.Errorf("tpm: open %q: %w: %w", path, hsm.ErrGone, err)
		}
		return &conn{rwc: c, stream: true}, nil
	}
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("tpm: open %q: want /dev/tpmrm0 or unix:/PATH", path)
	}
	// Not by os.OpenFile, which makes it non-blocking: the kernel's TPM devices
	// then take a command and read as ended until it was carried out.
	fd, err := syscall.Open(path, syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("tpm: open %q: %w: %w", path, hsm.ErrGone, err)
	}
	return &conn{rwc: os.NewFile(uintptr(fd), path)}, nil
}

// Send implements go-tpm's transport.TPM.
func (c *conn) Send(command []byte) ([]byte, error) {
	if c.broken != nil {
		return nil, c.broken
	}
	response, err := c.exchange(command)
	for pause := time.Millisecond; err == nil && retry(response) && pause < maxPause; pause *= 2 {
		time.Sleep(pause)
		response, err = c.exchange(command)
	}
	if err == nil {
		return response, nil
	}
	kind := hsm.ErrGone
	if errors.Is(err, os.ErrDeadlineExceeded) {
		kind = hsm.ErrTimeout
	}
	c.broken = fmt.Errorf("tpm: connection lost: %w: %w", kind, err)
	return nil, errors.Join(c.broken, c.rwc.Close())
}

// retry reports whether the TPM did not start the command and wants the same
// bytes once more (TPM_RC_RETRY; Part 2, section 6.6.3). One that counts wrong
// PINs does so at the first use of a PIN after it started. The kernel's own
// devices take care of it before we see it.
func retry(response []byte) bool {
	return len(response) >= headerSize && tpm2.TPMRC(binary.BigEndian.Uint32(response[6:])) == tpm2.TPMRCRetry
}

func (c *conn) exchange(command []byte) ([]byte, error) {
	if _, err := c.rwc.Write(command); err != nil {
		return nil, err
	}
	response := make([]byte, maxMessage)
	if !c.stream {
		n, err := c.rwc.Read(response)
		return response[:n], err
	}
	if _, err := io.ReadFull(c.rwc, response[:headerSize]); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(response[2:])
	if size < headerSize || size > maxMessage {
		return nil, fmt.Errorf("response says it has %d bytes", size)
	}
	_, err := io.ReadFull(c.rwc, response[headerSize:size])
	return response[:size], err
}

// limit sets when the running exchange is given up.
func (c *conn) limit(deadline time.Time) {
	if d, ok := c.rwc.(interface{ SetDeadline(time.Time) error }); ok {
		_ = d.SetDeadline(deadline) // a device without deadlines answers in its own time
	}
}
