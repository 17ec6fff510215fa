// Package actioncache owns which results of actions are known: in the memory
// of the schedulers, and behind it in journals on the workers' disks.
//
// It promises that a value which it returns was written for that key; that
// without faults every scheduler reads what was written; that nodes which were
// apart agree again once they have heard of each other; and that a miss costs a
// question at most. It does not promise to keep an entry: a lost one costs one
// execution. It doesn't look into results, nor whether what they name exists:
// that is the frontend's business. DESIGN.md beside this file says how.
package actioncache

import (
	"cmp"
	"fmt"
	"strings"
	"sync"
	"time"
	"unique"

	"google.golang.org/grpc/codes"

	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
)

const (
	// MaxResult is the largest result kept, in bytes: more doesn't fit into a
	// message to a client.
	MaxResult = 4<<20 - 64<<10
	// maxInstance bounds an instance name, maxAncestors how many of its
	// ancestors are read.
	maxInstance  = 1024
	maxAncestors = 8
	// maxAhead is how far a stamp may be ahead of this node's clock.
	maxAhead = 60 * time.Second
)

// Error is a sentinel with the code by which a client learns of it.
type Error struct {
	text string
	code codes.Code
}

func (e *Error) Error() string    { return e.text }
func (e *Error) Code() codes.Code { return e.code }

// The package's own errors; a miss is blob.ErrNotFound.
var (
	ErrTooLarge  = &Error{"result is too large for the action cache", codes.ResourceExhausted}
	ErrAhead     = &Error{"stamp is too far ahead of this node's clock", codes.InvalidArgument}
	ErrMalformed = &Error{"malformed action-cache entry", codes.InvalidArgument}
	ErrNoOwner   = &Error{"no scheduler took the action-cache entry", codes.Unavailable}
)

// Key names an entry: an action, for one instance (tenant).
type Key struct {
	Instance string
	Action   digest.Digest
}

// pack is the key as one string: the packed digest, then the instance.
func (k Key) pack() string {
	b := make([]byte, 0, 48+len(k.Instance))
	b = k.Action.Append(b)
	return string(append(b, k.Instance...))
}

func unpackKey(s string) (Key, error) {
	d, rest, err := digest.Next([]byte(s))
	if err != nil {
		return Key{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return Key{Instance: string(rest), Action: d}, nil
}

func (k Key) check() error {
	if k.Action.IsZero() || len(k.Instance) > maxInstance {
		return fmt.Errorf("%w: key of instance %.40q", ErrMalformed, k.Instance)
	}
	return nil
}

// line is the key and those that it inherits from: "a.b" reads "a.b", then "a".
func (k Key) line() []Key {
	ks := []Key{k}
	for len(ks) <= maxAncestors {
		dot := strings.LastIndexByte(k.Instance, '.')
		if dot <= 0 {
			break
		}
		k.Instance = k.Instance[:dot]
		ks = append(ks, k)
	}
	return ks
}

// Entry is a result, with when and by whom it was written.
type Entry struct {
	Key
	Stamp  int64  // of the writer's Clock
	Writer string // its Member.ID
	Result []byte // never changed once it is here
}

// version orders the entries of one key.
type version struct {
	stamp  int64
	writer unique.Handle[string] // as many entries share it
}

func (e *Entry) version() version { return version{e.Stamp, unique.Make(e.Writer)} }

// compare is positive when v was written after o.
func (v version) compare(o version) int {
	if c := cmp.Compare(v.stamp, o.stamp); c != 0 || v.writer == o.writer {
		return c
	}
	return strings.Compare(v.writer.Value(), o.writer.Value())
}

// Merge is the later written of two entries for one key. Nodes that merge the
// same entries, in whatever order and however often, end with the same one.
func Merge(a, b Entry) Entry {
	if c := a.version().compare(b.version()); c > 0 || c == 0 && string(a.Result) >= string(b.Result) {
		return a
	}
	return b
}

func toProto(e *Entry) *pb.AcEntry {
	return &pb.AcEntry{Key: keyToProto(e.Key), Stamp: e.Stamp, Writer: e.Writer, Result: e.Result}
}

func keyToProto(k Key) *pb.AcKey {
	return &pb.AcKey{Instance: k.Instance, Action: k.Action.Append(nil)}
}

func keyFromProto(p *pb.AcKey) (Key, error) {
	d, rest, err := digest.Next(p.GetAction())
	if err != nil || len(rest) > 0 {
		return Key{}, fmt.Errorf("%w: action %x", ErrMalformed, p.GetAction())
	}
	k := Key{Instance: p.GetInstance(), Action: d}
	return k, k.check()
}

func fromProto(p *pb.AcEntry) (Entry, error) {
	k, err := keyFromProto(p.GetKey())
	if err != nil {
		return Entry{}, err
	}
	if len(p.GetResult()) > MaxResult {
		return Entry{}, fmt.Errorf("%w: %d bytes", ErrTooLarge, len(p.GetResult()))
	}
	return Entry{Key: k, Stamp: p.GetStamp(), Writer: p.GetWriter(), Result: p.GetResult()}, nil
}

// Clock stamps writes: never behind what was seen, so that who has seen an
// entry overwrites it, whatever its own clock says. It is safe for concurrent
// use, and its zero value is ready.
type Clock struct {
	mu   sync.Mutex // guards last
	last int64
}

// Next is the stamp of a write now.
func (c *Clock) Next() int64 {
	now := time.Now().UnixNano()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = max(now, c.last+1)
	return c.last
}

// Observe takes in a stamp of someone else's, or refuses it with ErrAhead: one
// broken clock must not push everyone's into the future.
func (c *Clock) Observe(stamp int64) error {
	if ahead := stamp - time.Now().UnixNano(); ahead > int64(maxAhead) {
		return fmt.Errorf("%w: by %s", ErrAhead, time.Duration(ahead))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = max(c.last, stamp)
	return nil
}
