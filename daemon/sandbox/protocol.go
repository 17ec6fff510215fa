package sandbox

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"
)

// What the daemon and a runner say to each other: frames of a 32-bit length
// and a body, whose first byte is its kind. Both ends are the same binary, so
// there are no versions.
const (
	kindSetup byte = 1 + iota // daemon: once, first
	kindReady                 // runner: nothing of an earlier action is left
	kindRun                   // daemon: one command; a runner has one at a time
	kindKill                  // daemon: end it now, without grace
	kindDone                  // runner: the command's end, nothing of it is left
)

// maxFrame bounds a frame. Linux takes at most 6 MiB of arguments and
// environment together, whatever the stack's limit.
const maxFrame = 16 << 20

var errFrame = errors.New("malformed frame")

// setup is what a runner is told once.
type setup struct {
	UID, GID int    // actions' user and group; UID -1: the daemon's own
	Keeper   int    // a uid that nothing runs under (see killer)
	OldSID   int    // session of the runner before this one, 0 if there was none
	Dir      string // where the exec roots are
	Hide     string // a directory above Dir that UID may not enter, or ""
}

// command is one command to run.
type command struct {
	Root, Cwd      string // absolute
	Argv, Env      []string
	Stdout, Stderr string // existing files, appended to
	Timeout, Grace time.Duration
}

// Failures to start that a runner tells apart.
const (
	startOK    = 0
	startUser  = 1 // the command cannot be run: its author's fault
	startInfra = 2 // the machine's fault
)

// done is a command's end.
type done struct {
	Failure   int // start*
	Text      string
	Code      int // exit code, 128+N after signal N
	Signal    int
	TimedOut  bool
	Killed    bool // by kindKill
	Start     int64
	End       int64 // both CLOCK_MONOTONIC, nanoseconds
	User, Sys time.Duration
	MaxRSS    int64 // bytes
}

type encoder struct{ b []byte }

func newFrame(kind byte) *encoder { return &encoder{b: []byte{0, 0, 0, 0, kind}} }

func (e *encoder) int(v int64) { e.b = binary.AppendVarint(e.b, v) }

func (e *encoder) str(s string) {
	e.int(int64(len(s)))
	e.b = append(e.b, s...)
}

func (e *encoder) strs(ss []string) {
	e.int(int64(len(ss)))
	for _, s := range ss {
		e.str(s)
	}
}

func (e *encoder) bool(v bool) {
	if v {
		e.int(1)
	} else {
		e.int(0)
	}
}

func (e *encoder) frame() []byte {
	binary.LittleEndian.PutUint32(e.b, uint32(len(e.b)-4))
	return e.b
}

type decoder struct {
	b   []byte
	err error
}

func (d *decoder) int() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.b, d.err = nil, errFrame
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) str() string {
	n := d.int()
	if n < 0 || n > int64(len(d.b)) {
		d.b, d.err = nil, errFrame
		return ""
	}
	s := string(d.b[:n])
	d.b = d.b[n:]
	return s
}

func (d *decoder) strs() []string {
	n := d.int()
	if n < 0 || n > int64(len(d.b)) { // each takes a byte at least
		d.b, d.err = nil, errFrame
		return nil
	}
	ss := make([]string, n)
	for i := range ss {
		ss[i] = d.str()
	}
	return ss
}

// readFrame reads one frame and gives its kind and the rest of its body.
func readFrame(r io.Reader) (byte, []byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.LittleEndian.Uint32(head[:])
	if n == 0 || n > maxFrame {
		return 0, nil, fmt.Errorf("%w: %d bytes", errFrame, n)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return 0, nil, err
	}
	return b[0], b[1:], nil
}

func (s *setup) frame() []byte {
	e := newFrame(kindSetup)
	for _, v := range []int{s.UID, s.GID, s.Keeper, s.OldSID} {
		e.int(int64(v))
	}
	e.str(s.Dir)
	e.str(s.Hide)
	return e.frame()
}

func (s *setup) decode(b []byte) error {
	d := decoder{b: b}
	for _, v := range []*int{&s.UID, &s.GID, &s.Keeper, &s.OldSID} {
		*v = int(d.int())
	}
	s.Dir = d.str()
	s.Hide = d.str()
	return d.err
}

func (c *command) frame() []byte {
	e := newFrame(kindRun)
	e.str(c.Root)
	e.str(c.Cwd)
	e.strs(c.Argv)
	e.strs(c.Env)
	e.str(c.Stdout)
	e.str(c.Stderr)
	e.int(int64(c.Timeout))
	e.int(int64(c.Grace))
	return e.frame()
}

func (c *command) decode(b []byte) error {
	d := decoder{b: b}
	c.Root = d.str()
	c.Cwd = d.str()
	c.Argv = d.strs()
	c.Env = d.strs()
	c.Stdout = d.str()
	c.Stderr = d.str()
	c.Timeout = time.Duration(d.int())
	c.Grace = time.Duration(d.int())
	return d.err
}

func (r *done) frame() []byte {
	e := newFrame(kindDone)
	e.int(int64(r.Failure))
	e.str(r.Text)
	e.int(int64(r.Code))
	e.int(int64(r.Signal))
	e.bool(r.TimedOut)
	e.bool(r.Killed)
	for _, v := range []int64{r.Start, r.End, int64(r.User), int64(r.Sys), r.MaxRSS} {
		e.int(v)
	}
	return e.frame()
}

func (r *done) decode(b []byte) error {
	d := decoder{b: b}
	r.Failure = int(d.int())
	r.Text = d.str()
	r.Code = int(d.int())
	r.Signal = int(d.int())
	r.TimedOut = d.int() != 0
	r.Killed = d.int() != 0
	r.Start = d.int()
	r.End = d.int()
	r.User = time.Duration(d.int())
	r.Sys = time.Duration(d.int())
	r.MaxRSS = d.int()
	return d.err
}
