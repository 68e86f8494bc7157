// Package module is the native side of a token: the only code in keyturn that
// loads a PKCS#11 module, and so the only one that uses cgo. It runs inside the
// program keyturn-token and nowhere else.
//
// One process serves one client over one connection and holds one token. It
// keeps no secret longer than an answer takes, with one exception that is out
// of its hands: the copies that the module and the C library make, the PIN's
// among them. That is why the process is not dumpable, writes no core, is
// locked in memory where that is allowed, and ends with its client.
package module

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/miekg/pkcs11"

	"github.com/keyturn/keyturn/hsm/token/internal/wire"
)

// maxRunning bounds the requests that run at one time.
const maxRunning = 128

// server answers one client.
type server struct {
	conn  io.ReadWriter
	write sync.Mutex
	state sync.RWMutex // held for writing by operations that change p, d, the login or the objects
	p     *pkcs11.Ctx  // nil until a module is loaded
	d     *device      // nil until a token is open
}

// operation is what the server does for one wire.Op.
type operation struct {
	fields    int
	exclusive bool // nothing else runs meanwhile
	run       func(s *server, fields [][]byte) ([]byte, error)
}

var operations = map[wire.Op]operation{
	wire.OpTokens:    {2, true, (*server).tokens},
	wire.OpInit:      {5, true, (*server).initialise},
	wire.OpOpen:      {3, true, (*server).open},
	wire.OpLogin:     {2, true, onDevice((*device).login)},
	wire.OpInfo:      {0, false, onDevice((*device).describe)},
	wire.OpList:      {0, false, onDevice((*device).list)},
	wire.OpGenerate:  {2, true, onDevice((*device).generate)},
	wire.OpChangePIN: {3, true, onDevice((*device).changePIN)},
	wire.OpSign:      {4, false, onDevice((*device).sign)},
	wire.OpECDH:      {3, false, onDevice((*device).agree)},
	wire.OpWitness:   {1, false, onDevice((*device).witness)},
	wire.OpSeal:      {4, false, onDevice((*device).seal)},
	wire.OpUnseal:    {4, false, onDevice((*device).unseal)},
	wire.OpDestroy:   {3, true, onDevice((*device).destroy)},
}

func onDevice(run func(*device, [][]byte) ([]byte, error)) func(*server, [][]byte) ([]byte, error) {
	return func(s *server, fields [][]byte) ([]byte, error) {
		if s.d == nil {
			return nil, errors.New("no token is open")
		}
		return run(s.d, fields)
	}
}

// Serve answers requests from conn until it ends. A frame that cannot be read
// ends it with an error. The caller exits the process then: a call into the
// module may still hang.
func Serve(conn io.ReadWriter) error {
	s := &server{conn: conn}
	running := make(chan struct{}, maxRunning)
	for {
		request, err := wire.Read(conn)
		if err == io.EOF {
			s.finish()
			return nil
		}
		if err != nil {
			return err
		}
		running <- struct{}{}
		go func() {
			defer func() { <-running }()
			s.answer(request)
		}()
	}
}

// finish logs out, unless the module takes long about it.
func (s *server) finish() {
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.state.Lock()
		defer s.state.Unlock()
		if s.p != nil {
			s.p.Finalize()
		}
	}()
	select {
	case <-done:
	case <-time.After(time.Second):
	}
}

func (s *server) answer(request wire.Frame) {
	result, err := s.run(wire.Op(request.Code), request.Fields)
	code := codeOf(err)
	if err != nil {
		clear(result)
		result = []byte(err.Error())
	}
	request.Wipe()
	frame, err := wire.Frame{ID: request.ID, Code: byte(code), Fields: [][]byte{result}}.Marshal()
	clear(result)
	if err != nil {
		frame, err = wire.Frame{ID: request.ID, Code: byte(wire.CodeRefused), Fields: [][]byte{[]byte(err.Error())}}.Marshal()
	}
	if err == nil {
		s.write.Lock()
		_, err = s.conn.Write(frame.Bytes)
		s.write.Unlock()
		frame.Wipe()
	}
	if err != nil {
		os.Exit(1) // the client is gone
	}
}

func (s *server) run(op wire.Op, fields [][]byte) ([]byte, error) {
	o, known := operations[op]
	if !known || len(fields) != o.fields {
		return nil, fmt.Errorf("unknown request: operation %d with %d fields", op, len(fields))
	}
	if o.exclusive {
		s.state.Lock()
		defer s.state.Unlock()
	} else {
		s.state.RLock()
		defer s.state.RUnlock()
	}
	return o.run(s, fields)
}

// load loads and initialises the module, once.
func (s *server) load(version, path []byte) error {
	if string(version) != wire.Version {
		return fmt.Errorf("client speaks %q, this helper %q: install both from one build", version, wire.Version)
	}
	if s.p != nil {
		return errors.New("a module is loaded already")
	}
	p := pkcs11.New(string(path))
	if p == nil {
		return coded{wire.CodeAbsent, fmt.Errorf("module %q does not load", path)}
	}
	if err := p.Initialize(); err != nil {
		return missing(fmt.Errorf("initialise module %q (does the service run that it talks to?): %w", path, err))
	}
	s.p = p
	return nil
}

func (s *server) open(fields [][]byte) ([]byte, error) {
	if err := s.load(fields[0], fields[1]); err != nil {
		return nil, err
	}
	var want wire.Selector
	if err := json.Unmarshal(fields[2], &want, json.RejectUnknownMembers(true)); err != nil {
		return nil, fmt.Errorf("read selector: %w", err)
	}
	d, err := openDevice(s.p, want)
	if err != nil {
		return nil, missing(err)
	}
	s.d = d
	info, err := d.describe(nil)
	return info, missing(err)
}

func (s *server) tokens(fields [][]byte) ([]byte, error) {
	if err := s.load(fields[0], fields[1]); err != nil {
		return nil, err
	}
	slots, err := listSlots(s.p)
	if err != nil {
		return nil, err
	}
	infos := []wire.TokenInfo{}
	for _, slot := range slots {
		infos = append(infos, slot.info)
	}
	return json.Marshal(infos)
}

// initialise sets up the first token that is not initialised (PKCS #11,
// sections 5.5 and 5.6: C_InitToken by the security officer, then C_InitPIN).
func (s *server) initialise(fields [][]byte) ([]byte, error) {
	label, soPIN, userPIN := string(fields[2]), fields[3], fields[4]
	if err := s.load(fields[0], fields[1]); err != nil {
		return nil, err
	}
	if err := errors.Join(checkPIN(soPIN), checkPIN(userPIN)); err != nil {
		return nil, err
	}
	slots, err := listSlots(s.p)
	if err != nil {
		return nil, err
	}
	var free *slot
	for i, slot := range slots {
		if slot.info.Initialized && slot.info.Label == label {
			return nil, errors.New("there is a token of this label already")
		}
		if free == nil && !slot.info.Initialized {
			free = &slots[i]
		}
	}
	if free == nil {
		return nil, coded{wire.CodeAbsent, errors.New("no token is left that is not initialised")}
	}
	if err := s.p.InitToken(free.id, borrow(soPIN), label); err != nil {
		return nil, fmt.Errorf("initialise token: %w", err)
	}
	return nil, s.setFirstPIN(free.id, soPIN, userPIN)
}

func (s *server) setFirstPIN(slot uint, soPIN, userPIN []byte) error {
	session, err := s.p.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if err != nil {
		return fmt.Errorf("open session: %w", err)
	}
	defer s.p.CloseSession(session)
	if err := s.p.Login(session, pkcs11.CKU_SO, borrow(soPIN)); err != nil {
		return fmt.Errorf("log in as security officer: %w", err)
	}
	defer s.p.Logout(session)
	if err := s.p.InitPIN(session, borrow(userPIN)); err != nil {
		return fmt.Errorf("set user pin: %w", err)
	}
	return nil
}
