package replica

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/blob/disk"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
	"github.com/remex-build/terraform-provider-remex/daemon/rpc"
)

// nowhere reaches nobody, except that every question is answered "absent".
type nowhere struct{}

func (nowhere) Call(_ context.Context, _ string, m pb.Method, req, resp proto.Message) error {
	if e, ok := resp.(*pb.ExistsResponse); ok && m == pb.Method_METHOD_BLOB_EXISTS {
		ds, err := digest.Unpack(req.(*pb.ExistsRequest).Digests)
		ps := make([]disk.Presence, len(ds))
		for i := range ps {
			ps[i] = disk.Absent
		}
		e.Presence = packPresence(ps)
		return err
	}
	return blob.ErrUnavailable
}
func (nowhere) Conn(string) (*grpc.ClientConn, error) { return nil, blob.ErrUnavailable }
func (nowhere) Reachable(string) bool                 { return false }

// readAll reads now by Read, now by chunks.
func readAll(t testing.TB, g blob.Getter, d digest.Digest, off int64) ([]byte, error) {
	t.Helper()
	r, err := g.Get(t.Context(), d, off)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var all bytes.Buffer
	var chunk rpc.Bulk
	defer chunk.Free()
	p := make([]byte, 50_000)
	for {
		n, err := r.Read(p)
		all.Write(p[:n])
		if err == nil {
			_, err = chunk.Fill(r, 70_001)
			_, _ = chunk.WriteTo(&all) // of which a buffer has no errors
		}
		if errors.Is(err, io.EOF) {
			return all.Bytes(), nil
		}
		if err != nil {
			return all.Bytes(), err
		}
	}
}

func TestGet(t *testing.T) {
	t.Parallel()
	bothSizes(t, func(t *testing.T, size int) {
		c := newCluster(t, 4, options{})
		b := random(size)
		for _, n := range c.rank(b.Digest)[:2] {
			n.keep(b)
		}
		for _, off := range []int{0, 1, size / 2, size - 1, size} {
			if got, err := readAll(t, c, b.Digest, int64(off)); err != nil || !bytes.Equal(got, b.Data[off:]) {
				t.Errorf("from %d: %d bytes, %v", off, len(got), err)
			}
		}
		for _, off := range []int64{-1, int64(size) + 1} {
			if _, err := c.Get(t.Context(), b.Digest, off); !errors.Is(err, blob.ErrOutOfRange) {
				t.Errorf("from %d: %v", off, err)
			}
		}
		t.Run("asks down the rank order", func(t *testing.T) {
			b := random(size)
			c.rank(b.Digest)[3].keep(b)
			if got, err := readAll(t, c, b.Digest, 0); err != nil || !bytes.Equal(got, b.Data) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
		t.Run("passes over disks out of reach", func(t *testing.T) {
			b := random(size)
			rank := c.rank(b.Digest)
			rank[0].keep(b)
			rank[1].keep(b)
			c.wire.setCut(rank[0].addr, true)
			defer c.wire.setCut(rank[0].addr, false)
			if got, err := readAll(t, c, b.Digest, 0); err != nil || !bytes.Equal(got, b.Data) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
		t.Run("reads a worker's own disk without asking anybody", func(t *testing.T) {
			b := random(size)
			n := c.rank(b.Digest)[3]
			n.keep(b)
			before := n.wire.count(pb.Method_METHOD_BLOB_GET)
			if got, err := readAll(t, n.store, b.Digest, 5); err != nil || !bytes.Equal(got, b.Data[5:]) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			if n.wire.count(pb.Method_METHOD_BLOB_GET) != before {
				t.Error("it asked others")
			}
		})
	})
}

func TestAReadGoesOnFromAnotherDisk(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, options{})
	b := random(16 << 20) // more than lies in transport buffers
	rank := c.rank(b.Digest)
	rank[0].keep(b)
	rank[1].keep(b)
	r, err := c.Get(t.Context(), b.Digest, 100)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got, err := io.ReadAll(&pausing{r: r, n: 1 << 20, f: rank[0].stop})
	if err != nil || !bytes.Equal(got, b.Data[100:]) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if n := counted(c.metrics.failovers); n != 1 {
		t.Errorf("%v fail-overs", n)
	}
}

// flip changes one byte in whatever file of the disk holds the blob.
func (n *node) flip(b blob.Blob) {
	n.t.Helper()
	found := 0
	err := filepath.WalkDir(n.dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		at := bytes.Index(data, b.Data[:min(64, len(b.Data))])
		if at < 0 {
			return nil
		}
		found++
		if err := os.Chmod(path, 0o600); err != nil {
			return err
		}
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		at += len(b.Data) / 2
		_, err = f.WriteAt([]byte{^data[at]}, int64(at))
		return err
	})
	if err != nil || found == 0 {
		n.t.Fatalf("found %d copies to spoil, %v", found, err)
	}
}

func TestACorruptCopyIsPassedOverAndReplaced(t *testing.T) {
	t.Parallel()
	bothSizes(t, func(t *testing.T, size int) {
		c := newCluster(t, 3, options{})
		b := random(size)
		if err := c.put(b); err != nil {
			t.Fatal(err)
		}
		first := c.rank(b.Digest)[0]
		first.flip(b)
		if got, err := readAll(t, c, b.Digest, 0); err != nil || !bytes.Equal(got, b.Data) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
		eventually(t, "the owner has a good copy", func() bool {
			rs := first.disk.GetBatch(t.Context(), []digest.Digest{b.Digest})
			if size > blob.SmallSize {
				got, err := readAll(t, first.disk, b.Digest, 0)
				return err == nil && bytes.Equal(got, b.Data)
			}
			return bytes.Equal(rs[0].Data, b.Data)
		})
	})
}

func TestGetBatch(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4, options{})
	var ds []digest.Digest
	var want [][]byte
	for i := range 200 {
		b := random(40_000)
		if i%10 != 0 {
			c.rank(b.Digest)[i%4].keep(b)
			want = append(want, b.Data)
		} else {
			want = append(want, nil)
		}
		ds = append(ds, b.Digest)
	}
	ds, want = append(ds, digest.Empty(digest.SHA256)), append(want, []byte{})
	for i, r := range c.GetBatch(t.Context(), ds) {
		switch {
		case want[i] == nil:
			if !blob.IsNotFound(r.Err) {
				t.Errorf("blob %d: %d bytes, %v", i, len(r.Data), r.Err)
			}
		case r.Err != nil || !bytes.Equal(r.Data, want[i]):
			t.Errorf("blob %d: %d bytes, %v", i, len(r.Data), r.Err)
		}
	}
}

func TestFetch(t *testing.T) {
	t.Parallel()
	t.Run("brings a thousand small inputs in a handful of calls", func(t *testing.T) {
		c := newCluster(t, 3, options{})
		var bs []blob.Blob
		var ds []digest.Digest
		for range 1000 {
			b := random(2000)
			bs, ds = append(bs, b), append(ds, b.Digest)
		}
		if err := errors.Join(c.PutBatch(t.Context(), bs)...); err != nil {
			t.Fatal(err)
		}
		n := c.nodes[0]
		if err := n.store.Fetch(t.Context(), ds); err != nil {
			t.Fatal(err)
		}
		for i, p := range n.disk.Presence(ds, false) {
			if p != disk.Present {
				t.Fatalf("blob %d is %v", i, p)
			}
		}
		if k := n.wire.count(pb.Method_METHOD_BLOB_GET); k > 4 {
			t.Errorf("took %d calls", k)
		}
		if n.disk.Stats().CachedBlobs == 0 {
			t.Error("none is cached")
		}
	})
	t.Run("lists all that are missing", func(t *testing.T) {
		c := newCluster(t, 3, options{})
		var ds, want []digest.Digest
		for i := range 20 {
			b := random([]int{smallSize, 100_000}[i%2])
			ds = append(ds, b.Digest)
			if i%3 == 0 {
				want = append(want, b.Digest)
			} else {
				c.rank(b.Digest)[1].keep(b)
			}
		}
		err := c.nodes[0].store.Fetch(t.Context(), append(ds, digest.Empty(digest.SHA256)))
		var m *MissingError
		if !errors.As(err, &m) {
			t.Fatalf("got %v", err)
		}
		slices.SortFunc(m.Digests, digest.Digest.Compare)
		slices.SortFunc(want, digest.Digest.Compare)
		if !slices.Equal(m.Digests, want) {
			t.Errorf("%d are missing, want %d", len(m.Digests), len(want))
		}
		if !blob.IsNotFound(err) {
			t.Error("it is no ErrNotFound")
		}
	})
	t.Run("brings what several want once", func(t *testing.T) {
		c := newCluster(t, 3, options{})
		small, large := random(smallSize), random(largeSize)
		for _, b := range []blob.Blob{small, large} {
			if err := c.put(b); err != nil {
				t.Fatal(err)
			}
		}
		n := c.rank(small.Digest)[2]
		errs := make([]error, 20)
		var wg sync.WaitGroup
		for i := range errs {
			wg.Go(func() { errs[i] = n.store.Fetch(t.Context(), []digest.Digest{small.Digest, large.Digest}) })
		}
		wg.Wait()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
		if k := n.wire.count(pb.Method_METHOD_BLOB_GET); k != 1 {
			t.Errorf("took %d calls", k)
		}
		if !n.has(small.Digest) || !n.has(large.Digest) {
			t.Error("not both are there")
		}
	})
	t.Run("goes on for others when the first has gone", func(t *testing.T) {
		c := newCluster(t, 2, options{r: 1})
		b := random(smallSize)
		rank := c.rank(b.Digest)
		rank[0].keep(b)
		n := rank[1]
		n.wire.setCut(rank[0].addr, true)
		ctx, cancel := context.WithCancel(t.Context())
		first := make(chan error, 1)
		go func() { first <- n.store.Fetch(ctx, []digest.Digest{b.Digest}) }()
		eventually(t, "the first is at it", func() bool {
			n.store.flights.mu.Lock()
			defer n.store.flights.mu.Unlock()
			return len(n.store.flights.m) == 1
		})
		second := make(chan error, 1)
		go func() { second <- n.store.Fetch(t.Context(), []digest.Digest{b.Digest}) }()
		cancel()
		if err := <-first; !errors.Is(err, context.Canceled) {
			t.Errorf("the first got %v", err)
		}
		n.wire.setCut(rank[0].addr, false)
		if err := <-second; err != nil || !n.has(b.Digest) {
			t.Errorf("the second got %v", err)
		}
	})
}

func TestStreamsKeepToTheBudget(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, options{budget: 300 << 10})
	var wg sync.WaitGroup
	errs := make([]error, 16)
	for i := range errs {
		wg.Go(func() {
			b := random(1 << 20)
			if err := c.put(b); err != nil {
				errs[i] = err
				return
			}
			if err := c.nodes[i%3].store.Fetch(t.Context(), []digest.Digest{b.Digest}); err != nil {
				errs[i] = err
				return
			}
			got, err := readAll(t, c, b.Digest, 0)
			if err == nil && !bytes.Equal(got, b.Data) {
				err = fmt.Errorf("%d bytes", len(got))
			}
			errs[i] = err
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	// All of it was given back.
	if err := c.budget.Acquire(t.Context(), 300<<10); err != nil {
		t.Fatal(err)
	}
}

func TestTheEmptyBlobIsReadFromNobody(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 0, options{})
	for _, fn := range []digest.Function{digest.SHA256, digest.BLAKE3} {
		d := digest.Empty(fn)
		if r := c.GetBatch(soon(t, 100*time.Millisecond), []digest.Digest{d})[0]; r.Err != nil || len(r.Data) > 0 {
			t.Errorf("batch: %d bytes, %v", len(r.Data), r.Err)
		}
		if r, err := c.Get(soon(t, 100*time.Millisecond), d, 0); err != nil {
			t.Errorf("stream: %v", err)
		} else if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
}

// failing is a disk from which nothing can be read.
type failing struct {
	Disk
	reads atomic.Int32
}

func (f *failing) Get(context.Context, digest.Digest, int64) (io.ReadCloser, error) {
	f.reads.Add(1)
	return io.NopCloser(iotest.ErrReader(errors.New("input/output error"))), nil
}

func TestADiskThatFailsIsNotReadForEver(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, options{})
	b := random(largeSize)
	n := c.nodes[0]
	n.keep(b)
	disk := &failing{Disk: n.disk}
	s := c.begin(Options{Placement: c.layout, Local: disk, SelfAddr: n.addr})
	r, err := s.Get(soon(t, 300*time.Millisecond), b.Digest, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.ReadAll(r); err == nil {
		t.Error("it was read")
	}
	if n := disk.reads.Load(); n > 3 {
		t.Errorf("the disk was read %d times", n)
	}
}
