package actioncache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	maxSegment = 8 << 20
	minBudget  = 8 << 20
	// compactEvery is how often sparse segments are looked for.
	compactEvery = 10 * time.Second
)

// JournalOptions say where a journal is, and how large it may become.
type JournalOptions struct {
	Dir        string
	Budget     int64 // bytes on disk; the oldest segment goes when it is exceeded
	Log        *slog.Logger
	Registerer prometheus.Registerer // may be nil
}

// Journal is a worker disk's part of the action cache: entries in append-only
// segments, found by an index in memory. It is safe for concurrent use.
//
// It can be used from the moment it is open: what it has not read yet it
// doesn't find, and says so (Loading). An entry is kept as well as the page
// cache is: a killed process loses nothing, a lost host only itself, and what
// a crash tore is skipped.
type Journal struct {
	dir         string
	budget      int64
	segmentSize int64
	log         *slog.Logger
	metrics     *journalMetrics

	// wmu serialises what changes segments and index: appends, reading at the
	// start, compaction. It is taken before mu, and held across I/O.
	wmu sync.Mutex

	mu       sync.Mutex // guards everything below; never held across I/O
	closed   bool
	segments map[uint32]*segment
	active   *segment // appended to; nil until the first append
	nextID   uint32
	unread   int // segments
	bytes    int64
	index    map[tag]place
}

// place is where the newest record of a key lies.
type place struct {
	segment uint32
	off     uint32
	size    uint32
	stamp   int64
}

// OpenJournal opens the journal in o.Dir, which is created where it isn't
// there. Run reads it.
func OpenJournal(o JournalOptions) (*Journal, error) {
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make journal directory: %w", err)
	}
	budget := max(o.Budget, minBudget)
	j := &Journal{
		dir: o.Dir, budget: budget, segmentSize: min(budget/16, maxSegment),
		log:      o.Log.With("part", "action journal"),
		segments: make(map[uint32]*segment), index: make(map[tag]place),
	}
	j.metrics = newJournalMetrics(o.Registerer, j)
	files, err := os.ReadDir(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("list journal: %w", err)
	}
	for _, f := range files {
		if err := j.openSegment(f); err != nil {
			return nil, errors.Join(err, j.Close())
		}
	}
	return j, nil
}

func (j *Journal) path(id uint32) string { return filepath.Join(j.dir, fmt.Sprintf("%08x.acj", id)) }

// openSegment opens a file of the directory for reading: what comes is
// appended to new segments, never behind what may be torn.
func (j *Journal) openSegment(f fs.DirEntry) error {
	var id uint32
	if _, err := fmt.Sscanf(f.Name(), "%08x.acj", &id); err != nil || filepath.Base(j.path(id)) != f.Name() {
		return nil //nolint:nilerr // not ours
	}
	info, err := f.Info()
	if err != nil {
		return fmt.Errorf("stat segment: %w", err)
	}
	if info.Size() == 0 || info.Size() > 2*maxSegment+maxRecord {
		j.log.Warn("action journal segment of an impossible size removed", "segment", id, "bytes", info.Size())
		if err := os.Remove(j.path(id)); err != nil {
			return fmt.Errorf("remove segment: %w", err)
		}
		return nil
	}
	file, err := os.Open(j.path(id))
	if err != nil {
		return fmt.Errorf("open segment: %w", err)
	}
	j.segments[id] = &segment{id: id, file: file, size: info.Size(), unread: true}
	j.bytes += info.Size()
	j.unread++
	j.nextID = max(j.nextID, id+1)
	return nil
}

// Run reads what lies on the disk, then keeps it compact, until ctx ends.
func (j *Journal) Run(ctx context.Context) error {
	start := time.Now()
	for _, id := range slices.Backward(j.ids()) {
		if ctx.Err() != nil {
			return nil //nolint:nilerr // the end was asked for
		}
		j.load(id)
	}
	j.log.Info("action journal read", "entries", j.Stats().Entries, "bytes", j.Stats().Bytes, "dur", time.Since(start))
	tick := time.NewTicker(compactEvery)
	defer tick.Stop()
	for {
		j.compact(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Close closes the files. What is called afterwards finds and keeps nothing.
func (j *Journal) Close() error {
	j.wmu.Lock()
	defer j.wmu.Unlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	var errs []error
	for _, s := range j.segments {
		errs = append(errs, s.file.Close())
	}
	clear(j.segments)
	clear(j.index)
	j.active, j.closed = nil, true
	return errors.Join(errs...)
}

// Loading reports whether some of what lies on the disk is not read yet.
func (j *Journal) Loading() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.unread > 0
}

// Stats counts what the journal holds; Bytes are those of its files.
func (j *Journal) Stats() Stats {
	j.mu.Lock()
	defer j.mu.Unlock()
	return Stats{Entries: len(j.index), Bytes: j.bytes}
}

// segmentFrom finds the oldest segment from id on.
func (j *Journal) segmentFrom(id uint32) (found uint32, ok bool) {
	for _, s := range j.ids() {
		if s >= id {
			return s, true
		}
	}
	return 0, false
}

// ids are the segments' ids, ascending: the oldest first.
func (j *Journal) ids() []uint32 {
	j.mu.Lock()
	defer j.mu.Unlock()
	ids := make([]uint32, 0, len(j.segments))
	for id := range j.segments {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

func (j *Journal) segment(id uint32) *segment {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.segments[id]
}

// load takes a segment's records into the index.
func (j *Journal) load(id uint32) {
	j.wmu.Lock()
	defer j.wmu.Unlock()
	s := j.segment(id)
	if s == nil || !s.unread {
		return
	}
	b, err := s.read(0, s.size)
	if err != nil {
		j.log.Error("action journal segment is unreadable", "segment", id, "err", err)
	}
	_, skipped := scan(b, true, func(r record) { j.point(s, r) })
	if skipped > 0 {
		j.metrics.corrupt.Add(float64(skipped))
		j.log.Warn("action journal segment is torn or corrupt", "segment", id, "skipped", skipped)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	s.unread = false
	j.unread--
}

// point makes the index point to r in s, unless it points to what was written
// later. The caller holds wmu.
func (j *Journal) point(s *segment, r record) {
	newer := j.newer(r)
	j.mu.Lock()
	defer j.mu.Unlock()
	s.newest = max(s.newest, r.stamp)
	if !newer {
		return
	}
	if p, ok := j.index[r.tag]; ok {
		if old := j.segments[p.segment]; old != nil {
			old.live -= int64(p.size)
		}
	}
	j.index[r.tag] = place{segment: s.id, off: uint32(r.off), size: uint32(len(r.raw)), stamp: r.stamp}
	s.live += int64(len(r.raw))
}

// newer reports whether r was written later than what the index points to. The
// caller holds wmu.
func (j *Journal) newer(r record) bool {
	j.mu.Lock()
	p, ok := j.index[r.tag]
	s := j.segments[p.segment]
	j.mu.Unlock()
	if !ok || s == nil || r.stamp != p.stamp {
		return !ok || s == nil || r.stamp > p.stamp
	}
	// The same stamp: mostly the same entry, sent again.
	mine, err := r.entry()
	if err != nil {
		return false
	}
	other, err := j.readEntry(s, p)
	if err != nil {
		return true
	}
	return mine.version().compare(other.version()) > 0
}

func (j *Journal) readEntry(s *segment, p place) (Entry, error) {
	b, err := s.read(int64(p.off), int64(p.size))
	if err != nil {
		return Entry{}, err
	}
	r, err := checkRecord(b)
	if err != nil {
		return Entry{}, err
	}
	return r.entry()
}

// Get finds the entry of k. An error means that it could not tell.
func (j *Journal) Get(k Key) (e Entry, found bool, err error) {
	t := tagOf(k)
	for range 3 { // compaction may take the file away; the entry is elsewhere then
		j.mu.Lock()
		p, ok := j.index[t]
		s := j.segments[p.segment]
		j.mu.Unlock()
		if !ok || s == nil {
			return Entry{}, false, nil
		}
		if e, err = j.readEntry(s, p); err == nil {
			return e, e.Key == k, nil
		}
		if !errors.Is(err, os.ErrClosed) {
			j.forget(t, p)
			j.metrics.corrupt.Add(float64(p.size))
			j.log.Warn("action journal record dropped", "action", k.Action, "err", err)
			break
		}
	}
	return Entry{}, false, fmt.Errorf("get action %s: %w", k.Action, err)
}

// forget drops a record that can't be read.
func (j *Journal) forget(t tag, p place) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.index[t] != p {
		return
	}
	delete(j.index, t)
	if s := j.segments[p.segment]; s != nil {
		s.live -= int64(p.size)
	}
}
