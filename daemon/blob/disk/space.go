package disk

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
)

const (
	blockSize = 4096
	// roomWait bounds how long a write waits at the hard limit for the
	// evictor. Beyond it the next disk in rank is the better place.
	roomWait = 2 * time.Second
	// fruitlessPause is how long the evictor is left alone after that.
	fruitlessPause = time.Second
	// inodeReserve is the share of the file system's inodes that stays free.
	inodeReserve = 100
)

// space accounts for the bytes on disk. Writes reserve their room before they
// write it, so that all of them together stay under the limit.
type space struct {
	capacity int64
	reserve  int64 // of the file system; a segment's worth at least, for rewriting
	limit    int64 // for writes; what is above lets segments be rewritten
	high     int64 // where eviction begins
	low      int64 // where it ends
	live     int64 // what it leaves of blobs, so that rewriting segments pays

	used   atomic.Int64 // reserved and written
	budget atomic.Int64 // what the file system has beyond the reserve, as far as known
	free   atomic.Int64 // of the file system when last looked at
	full   atomic.Bool  // the last write that asked was refused
	wake   chan struct{}

	noInode   atomic.Bool  // the file system is short of inodes
	fruitless atomic.Int64 // when a write last waited in vain, in Unix nanoseconds

	mu  sync.Mutex // guards cur
	cur *round
}

// round is one pass of the evictor.
type round struct {
	done  chan struct{}
	found bool // something to evict or to rewrite; valid when done
}

func (p *space) init(capacity, reserve, segment int64) {
	p.capacity = capacity
	p.reserve = max(reserve, segment)
	p.limit = capacity - segment
	p.high = p.limit / 100 * 94
	p.low = p.limit / 100 * 90
	p.live = p.limit / 100 * 85
	p.wake = make(chan struct{}, 1)
	p.cur = &round{done: make(chan struct{})}
}

// fileBytes is what a file of n bytes occupies.
func fileBytes(n int64) int64 { return (n + blockSize - 1) / blockSize * blockSize }

// look asks the file system what is free.
func (p *space) look(s *Store) {
	var st unix.Statfs_t
	if err := unix.Statfs(s.o.Dir, &st); err != nil {
		s.log.Warn("the file system does not say what is free", "err", err)
		return
	}
	free := int64(st.Bavail) * st.Bsize
	p.free.Store(free)
	p.budget.Store(free - p.reserve)
	p.noInode.Store(st.Files > 0 && st.Ffree < st.Files/inodeReserve)
}

// take reserves n bytes, and an inode for a file, if they are there.
func (s *Store) take(n int64, file bool) bool {
	p := &s.space
	if n > p.limit {
		return false // and would overflow the sums below
	}
	used := p.used.Add(n)
	if used > p.high {
		p.kick()
	}
	if used > p.limit {
		p.used.Add(-n)
		return false
	}
	if p.budget.Add(-n) < 0 {
		if p.look(s); p.budget.Add(-n) < 0 {
			p.used.Add(-n)
			p.kick()
			return false
		}
	}
	if file && p.noInode.Load() {
		p.used.Add(-n)
		p.kick()
		return false
	}
	return true
}

// reserve takes n bytes, waiting for the evictor when there are none. The
// caller gives back with release what it does not write.
func (s *Store) reserve(ctx context.Context, n int64, file bool) error {
	if s.closed.Load() {
		return errClosed
	}
	if s.take(n, file) {
		s.space.full.Store(false)
		return nil
	}
	if s.running.Load() && n <= s.space.low && !s.space.hopeless() {
		timeout := time.NewTimer(roomWait)
		defer timeout.Stop()
		// As long as the evictor finds something it is our turn some time. The
		// round under way may have begun before we asked.
		for vain := 0; vain < 2 && !s.space.hopeless(); {
			r := s.space.nextRound()
			select {
			case <-r.done:
				if !r.found {
					vain++
				}
			case <-timeout.C:
				vain = 2
			case <-ctx.Done():
				return ctx.Err()
			}
			if s.take(n, file) {
				s.space.full.Store(false)
				return nil
			}
		}
		s.space.fruitless.Store(time.Now().UnixNano())
	}
	s.space.full.Store(true)
	s.m.refused.Inc()
	return fmt.Errorf("%w: %d bytes do not fit on the disk", blob.ErrFull, n)
}

func (s *Store) release(n int64) {
	s.space.used.Add(-n)
	s.space.budget.Add(n)
}

// hopeless reports whether a write has waited in vain just now. The evictor is
// not asked again for each write that a full disk refuses.
func (p *space) hopeless() bool {
	return time.Since(time.Unix(0, p.fruitless.Load())) < fruitlessPause
}

func (p *space) kick() {
	if p.hopeless() {
		return
	}
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *space) nextRound() *round {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.kick()
	return p.cur
}

func (p *space) endRound(found bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cur.found = found
	close(p.cur.done)
	p.cur = &round{done: make(chan struct{})}
}
