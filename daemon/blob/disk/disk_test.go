package disk

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/blob/blobtest"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	"github.com/remex-build/terraform-provider-remex/daemon/rpc"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		child(dir)
		return
	}
	goleak.VerifyTestMain(m)
}

// disk is a Store that runs until the test ends it.
type testDisk struct {
	*Store
	pause func() error // ends Run
	stop  func() error // and closes the store
}

func openDisk(t testing.TB, o Options) *testDisk {
	t.Helper()
	d := startDisk(t, o)
	d.awaitIndex(t)
	return d
}

func startDisk(t testing.TB, o Options) *testDisk {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	if o.Capacity == 0 {
		o.Capacity = 1 << 30
	}
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	d := &testDisk{Store: s}
	d.pause = sync.OnceValue(func() error { cancel(); return <-done })
	d.stop = func() error { return errors.Join(d.pause(), s.Close()) }
	t.Cleanup(func() {
		if err := d.stop(); err != nil {
			t.Errorf("stop: %v", err)
		}
	})
	return d
}

// checkAccounts is for a disk at rest.
func (d *testDisk) checkAccounts(t testing.TB) {
	t.Helper()
	if err := d.pause(); err != nil {
		t.Error(err)
	}
	checkAccounts(t, d.Store)
}

func (d *testDisk) awaitIndex(t testing.TB) {
	t.Helper()
	eventually(t, "the index is read", func() bool { return d.loaded.Load() && d.running.Load() })
}

// eventually waits for what another goroutine does, without a deadline of its
// own that a slow machine could miss.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for start := time.Now(); !ok(); time.Sleep(100 * time.Microsecond) {
		if time.Since(start) > 20*time.Second {
			t.Fatalf("it never happened that %s", what)
		}
	}
}

// asStore is a disk as the blob.Store that the contract is about.
type asStore struct {
	*Store
	kind Kind
}

func (a asStore) Put(ctx context.Context, d digest.Digest, r io.Reader) error {
	return a.Store.Put(ctx, d, a.kind, r)
}

func (a asStore) PutBatch(ctx context.Context, bs []blob.Blob) []error {
	return a.Store.PutBatch(ctx, a.kind, bs)
}

func (a asStore) Missing(_ context.Context, ds []digest.Digest) (missing []digest.Digest, err error) {
	for i, p := range a.Presence(ds, true) {
		switch p {
		case Unknown:
			return nil, blob.ErrUnavailable
		case Absent:
			missing = append(missing, ds[i])
		}
	}
	return missing, nil
}

func put(t testing.TB, s *Store, kind Kind, bs ...blob.Blob) {
	t.Helper()
	for _, b := range bs {
		if err := s.Put(t.Context(), b.Digest, kind, bytes.NewReader(b.Data)); err != nil {
			t.Fatalf("put %s: %v", b.Digest, err)
		}
	}
}

// remove drops a copy, as eviction would.
func remove(s *Store, d digest.Digest) bool {
	e, ok := s.lookup(d, false)
	return ok && s.drop(d, e)
}

func get(s *Store, d digest.Digest) ([]byte, error) {
	r, err := s.Get(context.Background(), d, 0)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(r)
	return data, errors.Join(err, r.Close())
}

func TestContract(t *testing.T) {
	t.Parallel()
	blobtest.Suite(t, func(t *testing.T) blob.Store {
		return asStore{openDisk(t, Options{}).Store, Owned}
	})
}

func TestContractWithFsync(t *testing.T) {
	t.Parallel()
	blobtest.Suite(t, func(t *testing.T) blob.Store {
		return asStore{openDisk(t, Options{Fsync: true}).Store, Cached}
	})
}

func TestAWriterTakesManyParts(t *testing.T) {
	d := openDisk(t, Options{})
	for name, sizes := range map[string][]int{
		"one":                            {200_000},
		"few":                            {1, 70_000, 0, 129_999},
		"more than the kernel takes":     slices.Repeat([]int{100}, 2*maxParts+7),
		"of a blob that is kept smaller": {10, 0, 20},
	} {
		t.Run(name, func(t *testing.T) {
			var size int
			for _, n := range sizes {
				size += n
			}
			b := blobtest.Blob(uint64(len(sizes)), size)
			w, err := d.Create(b.Digest, Owned)
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			var parts [][]byte
			for rest := b.Data; len(sizes) > 0; sizes = sizes[1:] {
				parts = append(parts, rest[:sizes[0]])
				rest = rest[sizes[0]:]
			}
			if err := w.WriteAll(parts); err != nil || w.Offset() != int64(size) {
				t.Fatalf("%d bytes, %v", w.Offset(), err)
			}
			if err := w.Commit(); err != nil {
				t.Fatal(err)
			}
			if r := d.GetBatch(t.Context(), []digest.Digest{b.Digest})[0]; r.Err != nil || !bytes.Equal(r.Data, b.Data) {
				t.Errorf("read %d bytes, %v", len(r.Data), r.Err)
			}
		})
	}
	b := blobtest.Blob(1, 200_000)
	w, err := d.Create(b.Digest, Owned)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := w.WriteAll([][]byte{b.Data, {0}}); !errors.Is(err, blob.ErrMismatch) || w.Offset() != 0 {
		t.Errorf("a byte too many: %d bytes, %v", w.Offset(), err)
	}
}

func TestAReaderHandsOutChunks(t *testing.T) {
	d := openDisk(t, Options{})
	b := blobtest.Blob(1, 3*sumChunk+5)
	if err := d.Put(t.Context(), b.Digest, Owned, bytes.NewReader(b.Data)); err != nil {
		t.Fatal(err)
	}
	for _, off := range []int64{0, 1, sumChunk - 1, sumChunk, 3*sumChunk + 4, 3*sumChunk + 5} {
		r, err := d.Get(t.Context(), b.Digest, off)
		if err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		var chunk rpc.Bulk
		for p := make([]byte, 1000); err == nil; {
			var n int
			if n, err = chunk.Fill(r, 700_000); n > 700_000 {
				t.Fatalf("%d bytes at once", n)
			}
			_, _ = chunk.WriteTo(&got)
			if err == nil {
				n, err = r.Read(p) // in between
				got.Write(p[:n])
			}
		}
		chunk.Free()
		if !errors.Is(err, io.EOF) || !bytes.Equal(got.Bytes(), b.Data[off:]) {
			t.Errorf("from %d: %d bytes, %v", off, got.Len(), err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
}
