package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

// segment is a file of records. It is appended to by the appender alone, until
// it is sealed; its file stays open as long as somebody reads from it.
type segment struct {
	number uint32
	path   string
	f      *os.File
	size   atomic.Int64 // bytes of whole records, and the magic
	live   atomic.Int64 // bytes of records that the index points to
	sealed atomic.Bool
	refs   atomic.Int64 // one for the table, one for each reader
	marked bool         // its last mark is in the journal; the checkpoint's own
	tries  int          // rewrites that left something; the evictor's own, as is stuck
	stuck  bool
}

func (g *segment) release() {
	if g.refs.Add(-1) == 0 {
		g.f.Close()
	}
}

func (g *segment) dead() int64 { return g.size.Load() - magicSize - g.live.Load() }

// segments is the table of segments.
type segments struct {
	mu     sync.RWMutex // guards byNumber; taken after a shard's, never before
	number map[uint32]*segment
}

// acquire returns the segment with a reference that the caller releases, or
// nil when it is gone.
func (t *segments) acquire(number uint32) *segment {
	t.mu.RLock()
	defer t.mu.RUnlock()
	g := t.number[number]
	if g != nil {
		g.refs.Add(1)
	}
	return g
}

func (t *segments) add(g *segment) {
	g.refs.Store(1)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.number[g.number] = g
}

func (t *segments) remove(g *segment) {
	t.mu.Lock()
	delete(t.number, g.number)
	t.mu.Unlock()
	g.release()
}

// addLive counts bytes that the index came to point to, or no longer does.
func (t *segments) addLive(number uint32, n int64) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if g := t.number[number]; g != nil {
		g.live.Add(n)
	}
}

func (t *segments) all() []*segment {
	t.mu.RLock()
	defer t.mu.RUnlock()
	gs := make([]*segment, 0, len(t.number))
	for _, g := range t.number {
		gs = append(gs, g)
	}
	return gs
}

// record is what an append writes. commit, when set, is called once the bytes
// are with the kernel and before the segment's end moves past them: whoever
// reads the index after the end knows the record.
type record struct {
	d      digest.Digest
	what   uint8
	sum    uint32
	data   []byte
	at     place
	commit func(*record)
	done   bool // written; whatever became of the rest of its batch
}

type appendBatch struct {
	recs []*record
	over uint32 // ask for a segment of a higher number
	err  error
	turn chan bool // true: lead; false: err says how it went
}

// groupBytes bounds what one write carries, and the buffer that it needs.
const groupBytes = 1 << 20

// appender writes records at the end of the newest segment. What gathers while
// a write is under way goes out together in the next one, led by the first
// who waits: concurrent batches of small blobs share a system call.
type appender struct {
	store *Store
	limit int64 // of a segment's bytes

	mu      sync.Mutex // guards waiting and busy
	waiting []*appendBatch
	busy    bool

	// owned by the leader
	seg  *segment
	next uint32
	buf  []byte
	recs []*record // whose bytes are in buf
}

// append writes recs and fills their places. The room has been reserved.
func (a *appender) append(recs []*record) error {
	return a.do(&appendBatch{recs: recs, turn: make(chan bool, 1)})
}

// surpass makes sure that there is a segment of a higher number. The journals
// still tell of one that is deleted, so that its number must not be used again:
// after a restart the next one is that above the highest that is there.
func (a *appender) surpass(number uint32) error {
	return a.do(&appendBatch{over: number, turn: make(chan bool, 1)})
}

func (a *appender) do(b *appendBatch) error {
	a.mu.Lock()
	a.waiting = append(a.waiting, b)
	if a.busy {
		a.mu.Unlock()
		if lead := <-b.turn; !lead {
			return b.err
		}
		a.mu.Lock()
	}
	a.busy = true
	group := a.waiting
	a.waiting = nil
	a.mu.Unlock()

	err := a.write(group)

	a.mu.Lock()
	for _, g := range group {
		g.err = err
		if g != b {
			g.turn <- false
		}
	}
	if len(a.waiting) > 0 {
		a.waiting[0].turn <- true
	} else {
		a.busy = false
	}
	a.mu.Unlock()
	return b.err
}

func (a *appender) write(group []*appendBatch) error {
	a.buf, a.recs = a.buf[:0], a.recs[:0]
	for _, b := range group {
		if b.over > 0 && (a.seg == nil || a.seg.number <= b.over) {
			if err := a.replace(); err != nil {
				return err
			}
		}
		for _, r := range b.recs {
			size := recordSize(r.d, int64(len(r.data)))
			if err := a.roomFor(size); err != nil {
				return err
			}
			r.at = place{a.seg.number, uint32(a.seg.size.Load() + int64(len(a.buf)))}
			a.buf = appendRecordHeader(a.buf, r.d, r.what, len(r.data), r.sum)
			a.buf = append(a.buf, r.data...)
			a.recs = append(a.recs, r)
		}
	}
	err := a.flush()
	if cap(a.buf) > 2*groupBytes {
		a.buf = nil
	}
	return err
}

// roomFor makes sure that the newest segment and the buffer take size bytes.
func (a *appender) roomFor(size int64) error {
	if len(a.buf) > 0 && int64(len(a.buf))+size > groupBytes {
		if err := a.flush(); err != nil {
			return err
		}
	}
	if a.seg != nil && !a.seg.sealed.Load() {
		end := a.seg.size.Load() + int64(len(a.buf))
		if end+size <= a.limit || end == magicSize {
			return nil
		}
		if err := a.flush(); err != nil {
			return err
		}
		a.seg.sealed.Store(true)
	}
	return a.begin()
}

// replace ends the newest segment and starts another.
func (a *appender) replace() error {
	if err := a.flush(); err != nil {
		return err
	}
	if a.seg != nil {
		a.seg.sealed.Store(true)
	}
	return a.begin()
}

// begin starts a new segment.
func (a *appender) begin() error {
	s := a.store
	if err := s.fault("create"); err != nil {
		return fmt.Errorf("begin segment: %w", diskError(err))
	}
	g := &segment{number: a.next, path: s.segmentPath(a.next)}
	f, err := os.OpenFile(g.path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("begin segment: %w", diskError(err))
	}
	if _, err := f.WriteString(segMagic); err != nil {
		f.Close()
		return errors.Join(fmt.Errorf("begin segment: %w", diskError(err)), os.Remove(g.path))
	}
	a.next++
	g.f = f
	g.size.Store(magicSize)
	s.space.used.Add(magicSize)
	s.segs.add(g)
	a.seg = g
	if s.o.Fsync {
		return syncDir(filepath.Dir(g.path))
	}
	return nil
}

// flush writes the buffer at the end of the newest segment.
func (a *appender) flush() error {
	if len(a.buf) == 0 {
		return nil
	}
	g := a.seg
	end := g.size.Load()
	err := a.store.fault("append")
	if err == nil {
		_, err = g.f.WriteAt(a.buf, end)
	}
	if err == nil && a.store.o.Fsync {
		err = unix.Fdatasync(int(g.f.Fd()))
	}
	if err != nil {
		// Nothing beyond the end counts; after an error of the device this
		// file is not trusted with more.
		if terr := g.f.Truncate(end); terr != nil || !isNoSpace(err) {
			g.sealed.Store(true)
		}
		a.buf, a.recs = a.buf[:0], a.recs[:0]
		return fmt.Errorf("append to segment %d: %w", g.number, diskError(err))
	}
	for _, r := range a.recs {
		r.done = true
		if r.commit != nil {
			r.commit(r)
		}
	}
	g.size.Store(end + int64(len(a.buf)))
	a.buf, a.recs = a.buf[:0], a.recs[:0]
	return nil
}

// seal ends the newest segment, so that it can be rewritten.
func (a *appender) seal() {
	a.mu.Lock()
	idle := !a.busy
	if idle && a.seg != nil {
		a.seg.sealed.Store(true)
	}
	a.mu.Unlock()
}
