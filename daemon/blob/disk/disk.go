// Package disk owns one worker's blobs: a directory on a local file system.
//
// Blobs of up to blob.SmallSize bytes are records in segment files, larger
// ones are files. A blob that an action reads as an input becomes a file of
// its own on first use, which hard links point to. The index is in memory,
// and is read back from a snapshot and a journal in the background: new blobs
// are taken at once, and what is not read yet is "could not tell".
//
// It promises that bytes leave only after they were found right, that "not
// found" is said only of what is not there, and that a full or failing disk
// is an error of its own. It does not promise that a blob outlives a power
// failure (copies do that, see Options.Fsync), and does not know other disks.
// DESIGN.md in this directory describes the format.
package disk

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/cluster"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

// Kind says why a copy is kept.
type Kind uint8

const (
	// Cached copies were fetched for use on this node and go first.
	Cached Kind = 1
	// Owned copies are kept for the cluster, for Options.MinAge at least.
	Owned Kind = 2
)

// String is the kind's name in metrics.
func (k Kind) String() string {
	if k == Owned {
		return "owned"
	}
	return "cached"
}

// Presence is what a disk says of a blob; the values are those of the wire.
type Presence uint8

// The answers. Unknown means that the index is still being read.
const (
	Unknown Presence = 0
	Absent  Presence = 1
	Present Presence = 2
)

// Options configure a Store.
type Options struct {
	Dir string
	// Capacity bounds the bytes that the blobs occupy, all forms together.
	Capacity int64
	// Reserve is what stays free on the file system, whoever fills it.
	Reserve int64
	// MinAge is how long an owned blob is kept after its last use; 3 hours
	// when zero, which is what Bazel counts on.
	MinAge time.Duration
	// ScrubRate bounds the bytes a second that are read to find rotten
	// copies; zero turns the scrubber off.
	ScrubRate int64
	// ScrubEvery is how long the scrubber rests after each round; an hour when
	// zero.
	ScrubEvery time.Duration
	// Fsync makes every blob durable before it is acknowledged. It is for
	// clusters that keep a single copy.
	Fsync bool
	// OnCorrupt, when set, is told of each copy that was dropped because its
	// bytes were wrong or gone. It must not block.
	OnCorrupt func(d digest.Digest)

	Log        *slog.Logger
	Registerer prometheus.Registerer

	faults func(op string) error // set by tests: the error of the next such operation
}

// The directories of a store.
const (
	dirSegments = "segments"
	dirFiles    = "files"
	dirLinks    = "links"
	dirIndex    = "index"
	dirTemp     = "tmp"
	dirTrash    = "trash"
)

// Store keeps blobs in a directory. All its methods are safe for concurrent
// use.
type Store struct {
	o    Options
	id   cluster.DiskID
	lock *os.File
	umsk uint32
	log  *slog.Logger
	m    *metrics

	index   *index
	segs    segments
	app     appender
	journal journal
	space   space
	names   [256]sync.Mutex // by hash: whoever changes the files of a blob holds its lock

	horizons horizons

	old            []uint32 // segments found at the start
	generation     uint64   // of the first journal of this process
	clean          bool     // the process before closed the store
	loaded         atomic.Bool
	running        atomic.Bool
	closed         atomic.Bool
	temp           atomic.Uint64
	clock          atomic.Uint32 // never goes back, which the order of the lists needs
	corrupt        atomic.Int64
	lastCheckpoint uint32 // owned by Run, and by Close after it
}

// Open takes the directory into use. It is quick, whatever is in there: Run
// reads the index. Only one process can have a directory open.
func Open(o Options) (_ *Store, err error) {
	if o.MinAge == 0 {
		o.MinAge = 3 * time.Hour
	}
	if o.ScrubEvery == 0 {
		o.ScrubEvery = time.Hour
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Capacity <= 0 {
		return nil, fmt.Errorf("open disk %s: capacity must be positive", o.Dir)
	}
	var seed [16]byte
	rand.Read(seed[:])
	s := &Store{
		o:     o,
		log:   o.Log.With("part", "disk"),
		index: newIndex(binary.LittleEndian.Uint64(seed[:]), binary.LittleEndian.Uint64(seed[8:])),
		segs:  segments{number: make(map[uint32]*segment)},
	}
	s.journal.store, s.journal.wake = s, make(chan struct{}, 1)
	s.app = appender{store: s, limit: min(max(o.Capacity/256, 256<<10), 512<<20, max(o.Capacity/8, blob.SmallSize)), next: 1}
	s.space.init(o.Capacity, o.Reserve, s.app.limit)
	defer func() {
		if err != nil {
			err = fmt.Errorf("open disk %s: %w", o.Dir, err)
			if s.lock != nil {
				s.lock.Close()
			}
		}
	}()
	if err := s.openDir(); err != nil {
		return nil, err
	}
	s.lastCheckpoint = s.now()
	s.m = newMetrics(o.Registerer, s)
	return s, nil
}

func (s *Store) openDir() error {
	for _, dir := range []string{"", dirSegments, dirFiles, dirLinks, dirIndex, dirTemp, dirTrash} {
		if err := os.MkdirAll(s.path(dir), 0o700); err != nil {
			return err
		}
	}
	if err := s.takeLock(); err != nil {
		return err
	}
	s.umsk = umask()
	if err := s.listSegments(); err != nil {
		return err
	}
	if err := s.readID(); err != nil {
		return err
	}
	// Uploads of the process before are dead; Run deletes them.
	if err := s.clear(dirTemp); err != nil {
		return err
	}
	empty, err := s.empty()
	if err != nil {
		return err
	}
	if empty {
		// Whatever the index tells of is gone. It must not be taken for what
		// will lie in segments of the same numbers.
		if err := errors.Join(s.clear(dirIndex), s.clear(dirLinks), s.forgetHorizons()); err != nil {
			return err
		}
	}
	if err := s.loadHorizons(); err != nil {
		return err
	}
	gens, err := s.generations()
	if err != nil {
		return err
	}
	s.generation = 1
	if len(gens) > 0 {
		s.generation = gens[len(gens)-1] + 1
	}
	s.clean = s.takeMarker(s.generation-1) || empty
	s.space.look(s)
	return s.journal.open(s.generation)
}

// clear empties a directory; Run deletes what was in it.
func (s *Store) clear(dir string) error {
	if err := os.Rename(s.path(dir), s.path(dirTrash, fmt.Sprintf("%s-%d", dir, time.Now().UnixNano()))); err != nil {
		return err
	}
	return os.Mkdir(s.path(dir), 0o700)
}

func (s *Store) takeLock() error {
	f, err := os.OpenFile(s.path("lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	s.lock = f
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return ErrLocked
		}
		return fmt.Errorf("lock: %w", err)
	}
	return nil
}

func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.o.Dir}, elem...)...)
}

// ID names the disk for as long as it has contents.
func (s *Store) ID() cluster.DiskID { return s.id }

// Capacity is the bytes that the disk offers for blobs.
func (s *Store) Capacity() int64 { return s.o.Capacity }

// now is the time in Unix seconds. It never goes back.
func (s *Store) now() uint32 {
	now := uint32(time.Now().Unix())
	for {
		last := s.clock.Load()
		if now <= last {
			return last
		}
		if s.clock.CompareAndSwap(last, now) {
			return now
		}
	}
}

// Run reads the index, and then evicts, rewrites, scrubs and keeps the journal
// until ctx ends. An error means that the store cannot go on.
func (s *Store) Run(ctx context.Context) error {
	s.emptyTrash(ctx)
	if err := s.load(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("read index of disk %s: %w", s.o.Dir, err)
	}
	s.running.Store(true)
	defer s.running.Store(false)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { s.keepJournal(ctx); return nil })
	g.Go(func() error { s.keepRoom(ctx); return nil })
	g.Go(func() error { s.scrub(ctx); return nil })
	return g.Wait()
}

// keepJournal journals touches every minute, and starts a new snapshot when
// the journals have outgrown the last.
func (s *Store) keepJournal(ctx context.Context) {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.journal.wake:
			if err := s.journal.flush(); err != nil {
				s.log.Error("the index is not journalled", "err", err)
			}
			continue
		case <-tick.C:
		}
		err := errors.Join(s.checkpoint(), s.saveHorizons())
		if s.snapshotDue() {
			err = errors.Join(err, s.snapshot())
		}
		if err != nil {
			s.log.Error("the index is not journalled", "err", err)
		}
	}
}

// snapshotDue reports whether reading the journals back costs more than
// reading a snapshot would.
func (s *Store) snapshotDue() bool {
	st := s.counts()
	blobs := st.OwnedBlobs + st.CachedBlobs
	return s.journal.length() > max(16<<20, 2*64*blobs) || s.journal.incomplete()
}

// Close ends the use of the directory, after Run has returned. What is in
// flight fails.
func (s *Store) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	err := errors.Join(s.checkpoint(), s.saveHorizons(), s.journal.close())
	if err == nil && (s.loaded.Load() || s.clean) && s.journal.whole() {
		err = s.leaveMarker()
	}
	for _, g := range s.segs.all() {
		s.segs.remove(g)
	}
	s.m.unregister()
	return errors.Join(err, s.lock.Close())
}

// Stats describes a Store at one moment.
type Stats struct {
	Capacity    int64
	Used        int64 // bytes on disk of all forms together
	Free        int64 // of the file system
	OwnedBlobs  int64
	OwnedBytes  int64
	CachedBlobs int64
	CachedBytes int64
	Variants    int64 // files made for linking, beside the blobs themselves
	Segments    int64
	Loading     bool // the index is still being read
	Full        bool // writes are refused
	Corrupt     int64
}

// Stats is quick enough for every request for the node's status.
func (s *Store) Stats() Stats {
	st := s.counts()
	st.Capacity = s.o.Capacity
	st.Used = s.space.used.Load()
	st.Free = s.space.free.Load()
	st.Segments = int64(len(s.segs.all()))
	st.Loading = !s.loaded.Load()
	st.Full = s.space.full.Load()
	st.Corrupt = s.corrupt.Load()
	return st
}

func (s *Store) counts() (st Stats) {
	for i := range s.index.shards {
		sh := &s.index.shards[i]
		sh.mu.Lock()
		st.CachedBlobs += sh.count[Cached-1]
		st.CachedBytes += sh.bytes[Cached-1]
		st.OwnedBlobs += sh.count[Owned-1]
		st.OwnedBytes += sh.bytes[Owned-1]
		st.Variants += sh.variants
		sh.mu.Unlock()
	}
	return st
}
