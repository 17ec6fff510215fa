// Package operation owns the names of operations and of the tasks they wait on.
//
// A name says everything that a scheduler needs to find the task: which
// scheduler owned it first, what the task is keyed by, and two nonces, one of
// the task and one of the Execute call. So any scheduler can answer for any
// name, also after the one that made it is gone. Names are canonical: what
// parses prints as what was parsed.
package operation

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"github.com/cespare/xxhash/v2"

	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

// ErrMalformed is wrapped by every error about text that is no name.
var ErrMalformed = errors.New("malformed operation name")

// Key is what tasks merge by: calls with the same key ask for the same thing.
type Key struct {
	Instance string
	Scope    uint64 // Scope(the principal's scope)
	Action   digest.Digest
}

// Scope shortens a principal's scope to what a Key holds. It is taken from a
// cryptographic hash: whoever chooses a scope must not choose another's.
func Scope(s string) uint64 {
	if s == "" {
		return 0
	}
	h := sha256.Sum256([]byte(s))
	return binary.BigEndian.Uint64(h[:8])
}

// Hash spreads keys over schedulers.
func (k Key) Hash() uint64 {
	b := make([]byte, 0, 128)
	b = k.Action.Append(b)
	b = binary.BigEndian.AppendUint64(b, k.Scope)
	b = append(b, k.Instance...)
	return xxhash.Sum64(b)
}

// Task names a task.
type Task struct {
	Key
	Owner string // Member.ID of the scheduler that made the task
	Nonce uint64
}

// Name names an operation: one Execute call that waits on a task.
type Name struct {
	Task
	Op uint64
}

const keyword = "operations"

// String is the task's name: an operation's without the last segment.
func (t Task) String() string { return string(t.append(make([]byte, 0, 256))) }

func (t Task) append(b []byte) []byte {
	if t.Instance != "" {
		b = append(b, t.Instance...)
		b = append(b, '/')
	}
	b = append(b, keyword...)
	b = append(b, '/')
	b = append(b, url.PathEscape(t.Owner)...)
	b = append(b, '/')
	b = append(b, t.Action.Function().String()...)
	b = append(b, '/')
	b = append(b, t.Action.Hash()...)
	b = append(b, '/')
	b = strconv.AppendInt(b, t.Action.Size(), 10)
	b = append(b, '/')
	b = appendHex(b, t.Scope)
	b = append(b, '/')
	return appendHex(b, t.Nonce)
}

// String is the operation's name as clients see it.
func (n Name) String() string { return Join(n.Task.String(), n.Op) }

// Join makes an operation's name of its task's.
func Join(task string, op uint64) string {
	b := make([]byte, 0, len(task)+17)
	b = append(b, task...)
	b = append(b, '/')
	return string(appendHex(b, op))
}

func appendHex(b []byte, v uint64) []byte {
	const digits = "0123456789abcdef"
	for i := 60; i >= 0; i -= 4 {
		b = append(b, digits[v>>i&15])
	}
	return b
}

// Parse takes an operation's name apart.
func Parse(s string) (Name, error) {
	i := strings.LastIndexByte(s, '/')
	if i < 0 {
		return Name{}, fmt.Errorf("%w: %q", ErrMalformed, s)
	}
	op, err := strconv.ParseUint(s[i+1:], 16, 64)
	if err != nil {
		return Name{}, fmt.Errorf("%w: %q: nonce", ErrMalformed, s)
	}
	t, err := ParseTask(s[:i])
	if err != nil {
		return Name{}, err
	}
	n := Name{Task: t, Op: op}
	if n.String() != s {
		return Name{}, fmt.Errorf("%w: %q is not canonical", ErrMalformed, s)
	}
	return n, nil
}

// segments of a task's name from its keyword on.
const segments = 7

// ParseTask takes a task's name apart.
func ParseTask(s string) (Task, error) {
	bad := func(what string) (Task, error) {
		return Task{}, fmt.Errorf("%w: %q: %s", ErrMalformed, s, what)
	}
	// From the end, as an instance's name may hold anything.
	var part [segments]string
	rest := s
	for i := segments - 1; i > 0; i-- {
		j := strings.LastIndexByte(rest, '/')
		if j < 0 {
			return bad("too few segments")
		}
		rest, part[i] = rest[:j], rest[j+1:]
	}
	var t Task
	switch {
	case rest == keyword:
	case strings.HasSuffix(rest, "/"+keyword):
		t.Instance = strings.TrimSuffix(rest, "/"+keyword)
	default:
		return bad("no " + keyword)
	}
	var err error
	if t.Owner, err = url.PathUnescape(part[1]); err != nil || t.Owner == "" {
		return bad("owner")
	}
	fn, ok := digest.FunctionByName(part[2])
	if !ok {
		return bad("digest function")
	}
	size, err := strconv.ParseInt(part[4], 10, 64)
	if err != nil {
		return bad("size")
	}
	if t.Action, err = digest.Parse(fn, part[3], size); err != nil {
		return bad("digest")
	}
	if t.Scope, err = strconv.ParseUint(part[5], 16, 64); err != nil {
		return bad("scope")
	}
	if t.Nonce, err = strconv.ParseUint(part[6], 16, 64); err != nil {
		return bad("nonce")
	}
	if t.String() != s {
		return bad("not canonical")
	}
	return t, nil
}
