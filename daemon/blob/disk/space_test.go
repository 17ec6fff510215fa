package disk

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/blob/blobtest"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

// readDisk opens a store whose index is read, and that does nothing by itself.
func readDisk(t testing.TB, o Options) *Store {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	if err := s.load(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

// step is a moment in the life of a small store: a blob is stored, or asked for.
type step struct {
	wait time.Duration
	blob blob.Blob
	kind Kind
	put  bool
}

func drawSteps(t *rapid.T) (steps []step) {
	for range rapid.IntRange(1, 60).Draw(t, "steps") {
		seed, size := uint64(rapid.IntRange(0, 40).Draw(t, "blob")), 10_000
		if seed%2 == 0 {
			size = 100_000
		}
		steps = append(steps, step{
			wait: time.Duration(rapid.IntRange(1, 300).Draw(t, "seconds")) * time.Second,
			blob: blobtest.Blob(seed, size),
			kind: Kind(rapid.IntRange(1, 2).Draw(t, "kind")),
			put:  rapid.Bool().Draw(t, "put"),
		})
	}
	return steps
}

// copied is what the model of a store knows of a copy.
type copied struct {
	d    digest.Digest
	kind Kind
	used time.Time
}

// play takes the steps, and returns the copies in the order of their last use.
func play(t *testing.T, s *Store, steps []step) (order []copied) {
	for _, st := range steps {
		time.Sleep(st.wait)
		i := slices.IndexFunc(order, func(c copied) bool { return c.d == st.blob.Digest })
		c := copied{d: st.blob.Digest}
		if i >= 0 {
			c = order[i]
		}
		switch {
		case st.put:
			err := s.PutBatch(t.Context(), st.kind, []blob.Blob{st.blob})[0]
			if errors.Is(err, blob.ErrFull) {
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			c.kind = max(c.kind, st.kind)
		case i >= 0:
			s.Presence([]digest.Digest{c.d}, true)
		default:
			continue
		}
		if i >= 0 {
			order = slices.Delete(order, i, i+1)
		}
		c.used = time.Now()
		order = append(order, c)
	}
	return order
}

// TestEvictionFollowsTheModel evicts after a random history, and holds what is
// gone against a list: cached copies by last use, then owned ones that are old.
func TestEvictionFollowsTheModel(t *testing.T) {
	const minAge = time.Hour
	gone := 0
	rapid.Check(t, func(rt *rapid.T) {
		steps := drawSteps(rt)
		synctest.Test(t, func(t *testing.T) {
			s := readDisk(t, Options{Capacity: 1 << 20, MinAge: minAge})
			order := play(t, s, steps)
			s.evict(t.Context())

			left := 0
			for _, kind := range []Kind{Cached, Owned} {
				for _, c := range order {
					_, here := s.lookup(c.d, false)
					switch {
					case c.kind != kind:
						continue
					case kind == Owned && time.Since(c.used) < minAge:
						if !here {
							t.Errorf("an owned copy is gone %s after its use", time.Since(c.used))
						}
					case here:
						left++
					case left > 0:
						t.Errorf("a %s copy went, and one that was to go before it is here", kind)
					default:
						gone++
					}
				}
			}
			if used := s.space.used.Load(); used > s.space.high && left > 0 {
				t.Errorf("%d bytes of %d are used, and something could go", used, s.Capacity())
			}
			checkAccounts(t, s)
		})
		if t.Failed() {
			rt.Fatal("the model and the store differ")
		}
	})
	if gone == 0 {
		t.Error("nothing was ever evicted")
	}
}

func TestWritesGoOnWhileOldCopiesLeave(t *testing.T) {
	t.Parallel()
	d := openDisk(t, Options{Capacity: 24 << 20})
	for i := range uint64(900) {
		size := 30_000
		if i%20 == 0 {
			size = 700_000
		}
		b := blobtest.Blob(i, size)
		if err := d.Put(t.Context(), b.Digest, Cached, bytes.NewReader(b.Data)); err != nil {
			for _, g := range d.segs.all() {
				t.Logf("%d size %d live %d sealed %t stuck %t", g.number, g.size.Load(), g.live.Load(), g.sealed.Load(), g.stuck)
			}
			t.Fatalf("put %d: %v; used %d shortage %d, %+v, hopeless %t", i, err, d.space.used.Load(), d.shortage(), d.Stats(), d.space.hopeless())
		}
		if used := d.space.used.Load(); used > d.Capacity() {
			t.Fatalf("%d of %d bytes used", used, d.Capacity())
		}
	}
	last := blobtest.Blob(899, 30_000)
	serves(t, d.Store, last)
	d.checkAccounts(t)
}

func TestFullOfOwnedBlobsRefuses(t *testing.T) {
	o := Options{Dir: t.TempDir(), Capacity: 8 << 20}
	d := openDisk(t, o)
	var kept []blob.Blob
	var err error
	for i := uint64(0); err == nil; i++ {
		b := blobtest.Blob(i, 60_000)
		if err = d.PutBatch(t.Context(), Owned, []blob.Blob{b})[0]; err == nil {
			kept = append(kept, b)
		}
	}
	if !errors.Is(err, blob.ErrFull) {
		t.Fatalf("put: %v, want full", err)
	}
	if !d.Stats().Full {
		t.Error("it does not say that it is full")
	}
	if _, err := d.Create(blobtest.Blob(0, 1<<20).Digest, Cached); !errors.Is(err, blob.ErrFull) {
		t.Errorf("create: %v, want full", err)
	}
	serves(t, d.Store, kept...)
	// It takes blobs again when some may go.
	for _, b := range kept[:40] {
		d.SetKind(b.Digest, Cached)
	}
	d.space.fruitless.Store(0)
	put(t, d.Store, Owned, blobtest.Blob(9999, 60_000))
	serves(t, d.Store, kept[40:]...)
}

func TestWhatIsLinkedStays(t *testing.T) {
	s := readDisk(t, Options{Capacity: 128 << 20})
	used, idle := mixed(0, 14), mixed(100, 14)
	put(t, s, Cached, used...)
	put(t, s, Cached, idle...)
	for i, b := range used {
		link(t, s, b.Digest, i%2 == 0)
	}
	for _, b := range idle {
		os.Remove(link(t, s, b.Digest, true))
	}
	for _, b := range used {
		s.Presence([]digest.Digest{b.Digest}, false)
	}
	s.space.high, s.space.low, s.space.live = 1, 1, 1
	s.evict(t.Context())
	for i, b := range used {
		if p := s.Presence([]digest.Digest{b.Digest}, false)[0]; p != Present {
			t.Errorf("blob %d was evicted under its link", i)
		}
	}
	for i, b := range idle {
		if p := s.Presence([]digest.Digest{b.Digest}, false)[0]; p != Absent {
			t.Errorf("blob %d stays although nothing links to it", i)
		}
	}
	checkAccounts(t, s)
}

func TestLinkFilesGoBeforeOwnedBlobs(t *testing.T) {
	s := readDisk(t, Options{Capacity: 16 << 20})
	bs := mixed(0, 14)
	put(t, s, Owned, bs...)
	for _, b := range bs {
		os.Remove(link(t, s, b.Digest, true))
	}
	s.space.high, s.space.low, s.space.live = 1, 1, 1
	s.evict(t.Context())
	serves(t, s, bs...)
	if st := s.Stats(); st.Variants != 0 || st.OwnedBlobs != 14 {
		t.Errorf("stats %+v", st)
	}
	checkAccounts(t, s)
}

func TestSparseSegmentsAreRewritten(t *testing.T) {
	o := Options{Dir: t.TempDir(), Capacity: 64 << 20}
	s := readDisk(t, o)
	var keep, drop []blob.Blob
	for i := range uint64(100) {
		b := blobtest.Blob(i, 20_000)
		put(t, s, Owned, b)
		if i%4 == 0 {
			keep = append(keep, b)
		} else {
			drop = append(drop, b)
		}
	}
	large := blobtest.Blob(1000, 3<<20)
	put(t, s, Owned, large)
	r, err := s.Get(t.Context(), large.Digest, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	before := s.space.used.Load()
	for _, b := range drop {
		remove(s, b.Digest)
	}
	s.app.seal()
	s.rewriteSparse(t.Context())
	if used := s.space.used.Load(); used > before-1_000_000 {
		t.Errorf("%d bytes used, %d before three quarters of the records went", used, before)
	}
	serves(t, s, append(keep, large)...)
	checkAccounts(t, s)
	// A process that dies now has lost nothing.
	c := o
	c.Dir = copyTree(t, o.Dir)
	again := readDisk(t, c)
	serves(t, again, append(keep, large)...)
	checkAccounts(t, again)
}

func TestReadersOutliveEviction(t *testing.T) {
	s := readDisk(t, Options{Capacity: 64 << 20})
	small, large := blobtest.Blob(1, 20_000), blobtest.Blob(2, 3<<20)
	put(t, s, Cached, small, large)
	r, err := s.Get(t.Context(), large.Digest, 0)
	if err != nil {
		t.Fatal(err)
	}
	g := s.segs.acquire(1)
	defer g.release()
	remove(s, small.Digest)
	remove(s, large.Digest)
	s.app.seal()
	s.rewriteFor(t.Context(), 0)
	if !s.segs.acquireGone(1) {
		t.Error("the segment stays")
	}
	buf := make([]byte, 100)
	if _, err := g.f.ReadAt(buf, 0); err != nil {
		t.Errorf("a reader lost its segment: %v", err)
	}
	n := 0
	for {
		m, err := r.Read(buf)
		n += m
		if err != nil {
			break
		}
	}
	if r.Close(); n != 3<<20 {
		t.Errorf("a reader got %d bytes", n)
	}
}

// faults lets operations fail.
type faults struct {
	fail atomic.Pointer[map[string]error]
}

func (f *faults) set(m map[string]error) { f.fail.Store(&m) }

func (f *faults) fault(op string) error {
	if m := f.fail.Load(); m != nil {
		return (*m)[op]
	}
	return nil
}

func TestErrorsOfTheDevice(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		errno error
		want  error
	}{{unix.ENOSPC, blob.ErrFull}, {unix.EIO, blob.ErrUnavailable}} {
		t.Run(c.errno.Error(), func(t *testing.T) {
			var f faults
			o := Options{Dir: t.TempDir(), Capacity: 1 << 30, faults: f.fault}
			s := readDisk(t, o)
			before, after := mixed(0, 14), mixed(100, 14)
			put(t, s, Owned, before...)
			for _, op := range []string{"create", "append", "write", "rename", "journal"} {
				f.set(map[string]error{op: c.errno})
				for _, b := range after {
					err := s.PutBatch(t.Context(), Owned, []blob.Blob{b})[0]
					if err != nil && (!errors.Is(err, c.want) || blob.IsNotFound(err)) {
						t.Errorf("put while %s fails: %v", op, err)
					}
					dst := filepath.Join(t.TempDir(), "f")
					if err := s.Link(t.Context(), before[1].Digest, true, dst); err != nil && !errors.Is(err, c.want) {
						t.Errorf("link while %s fails: %v", op, err)
					}
				}
				f.set(nil)
				serves(t, s, before...)
				neverWrong(t, s, after...)
			}
			f.set(map[string]error{"read": unix.EIO})
			for _, b := range before {
				if _, err := get(s, b.Digest); !errors.Is(err, blob.ErrUnavailable) || errors.Is(err, ErrCorrupt) {
					t.Errorf("get from a failing device: %v", err)
				}
			}
			f.set(nil)
			put(t, s, Owned, after...)
			serves(t, s, append(before, after...)...)
			checkAccounts(t, s)
			c := o
			c.Dir = copyTree(t, o.Dir)
			again := readDisk(t, c)
			serves(t, again, append(before, after...)...)
		})
	}
}

// TestFileSystemIsFull fills a small file system for real.
func TestFileSystemIsFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting a file system needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=8m"); err != nil {
		t.Skipf("mounting a file system: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	d := openDisk(t, Options{Dir: dir, Capacity: 1 << 30})
	var kept []blob.Blob
	for i := range uint64(400) {
		size := 50_000
		if i%5 == 0 {
			size = 200_000
		}
		b := blobtest.Blob(i, size)
		err := d.PutBatch(t.Context(), Owned, []blob.Blob{b})[0]
		switch {
		case err == nil:
			kept = append(kept, b)
		case !errors.Is(err, blob.ErrFull):
			t.Fatalf("put: %v", err)
		}
	}
	if len(kept) < 50 || len(kept) == 400 {
		t.Errorf("%d blobs were taken", len(kept))
	}
	serves(t, d.Store, kept...)
	dst := filepath.Join(dir, "f")
	if err := d.Link(t.Context(), kept[1].Digest, true, dst); err != nil && !errors.Is(err, blob.ErrFull) {
		t.Errorf("link: %v", err)
	}
	os.Remove(dst)
	if err := d.stop(); err != nil && !errors.Is(err, blob.ErrFull) {
		t.Errorf("stop: %v", err)
	}
	again := openDisk(t, Options{Dir: dir, Capacity: 1 << 30})
	serves(t, again.Store, kept...)
	if err := again.stop(); err != nil && !errors.Is(err, blob.ErrFull) {
		t.Errorf("stop: %v", err)
	}
}

func TestReserveStaysFree(t *testing.T) {
	var st unix.Statfs_t
	dir := t.TempDir()
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	s := readDisk(t, Options{Dir: dir, Capacity: 1 << 30, Reserve: int64(st.Bavail)*st.Bsize + 1<<30})
	b := blobtest.Blob(1, 100)
	if err := s.PutBatch(t.Context(), Owned, []blob.Blob{b})[0]; !errors.Is(err, blob.ErrFull) {
		t.Errorf("put into the reserve: %v", err)
	}
}

func TestRunEndsAndLeavesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := Open(Options{Dir: t.TempDir(), Capacity: 1 << 30, ScrubRate: 1 << 30})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.Run(ctx) }()
		bs := mixed(0, 14)
		put(t, s, Owned, bs...)
		// Rot that nobody reads.
		path := s.filePath(bs[5].Digest)
		os.Chmod(path, 0o600)
		if err := os.WriteFile(path, make([]byte, bs[5].Digest.Size()), 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Hour)
		synctest.Wait()
		if p := s.Presence([]digest.Digest{bs[5].Digest}, false)[0]; p != Absent || s.Stats().Corrupt != 1 {
			t.Errorf("rot was not found: presence %d, %+v", p, s.Stats())
		}
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the rotten file is still there: %v", err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		if err := s.PutBatch(t.Context(), Owned, []blob.Blob{blobtest.Blob(77, 10)})[0]; !errors.Is(err, blob.ErrUnavailable) {
			t.Errorf("put after close: %v", err)
		}
	})
}
