package replica

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
)

// begin makes another node without a disk, that of a cluster of which it may
// not have heard all.
func (c *testCluster) begin(o Options) *Store {
	o.R, o.Log = 2, quiet()
	if o.Peers == nil {
		o.Peers = c.wire
	}
	s := New(o)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Run(ctx) })
	c.t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return s
}

func TestWhoHasNotHeardOfAllDisksSaysThatNothingIsMissing(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, options{})
	b := random(smallSize)
	rank := c.rank(b.Digest)
	rank[0].keep(b)
	rank[1].keep(b)
	own := newLayout(2, rank[2].place)
	s := c.begin(Options{Placement: own})
	got, err := s.Missing(soon(t, 100*time.Millisecond), []digest.Digest{b.Digest})
	if !errors.Is(err, blob.ErrUnavailable) {
		t.Errorf("with one disk in view: got %v, %v", got, err)
	}
	if _, err = s.Get(soon(t, 100*time.Millisecond), b.Digest, 0); !errors.Is(err, blob.ErrUnavailable) {
		t.Errorf("read with one disk in view: got %v", err)
	}
	time.AfterFunc(100*time.Millisecond, func() { own.set(2, rank[0].place, rank[1].place, rank[2].place) })
	if got, err = s.Missing(t.Context(), []digest.Digest{b.Digest}); err != nil || len(got) > 0 {
		t.Errorf("with all in view: got %v, %v", got, err)
	}
}

func TestBeforePlacementHasSettled(t *testing.T) {
	t.Parallel()
	start := func(t *testing.T) (*testCluster, *Store, *atomic.Bool) {
		c := newCluster(t, 2, options{})
		c.include(c.nodes[0])
		settled := new(atomic.Bool)
		return c, c.begin(Options{Placement: c.layout, Settled: settled.Load}), settled
	}
	t.Run("nothing is missing", func(t *testing.T) {
		_, s, settled := start(t)
		ds := []digest.Digest{random(smallSize).Digest}
		if got, err := s.Missing(soon(t, 100*time.Millisecond), ds); !errors.Is(err, blob.ErrUnavailable) {
			t.Errorf("got %v, %v", got, err)
		}
		time.AfterFunc(50*time.Millisecond, func() { settled.Store(true) })
		if got, err := s.Missing(t.Context(), ds); err != nil || !slices.Equal(got, ds) {
			t.Errorf("once it has settled: got %v, %v", got, err)
		}
	})
	bothSizes(t, func(t *testing.T, size int) {
		t.Run("a write waits for all its copies", func(t *testing.T) {
			c, s, settled := start(t)
			b := random(size)
			if err := s.Put(soon(t, 300*time.Millisecond), b.Digest, bytes.NewReader(b.Data)); err == nil {
				t.Error("acknowledged with one of two disks in view")
			}
			time.AfterFunc(50*time.Millisecond, func() { c.include(c.nodes...) })
			if err := s.Put(t.Context(), b.Digest, bytes.NewReader(b.Data)); err != nil || len(c.holders(b.Digest)) != 2 {
				t.Errorf("with both in view: %v, held by %v", err, c.holders(b.Digest))
			}
			settled.Store(true)
			c.include(c.nodes[0])
			b = random(size)
			if err := s.Put(t.Context(), b.Digest, bytes.NewReader(b.Data)); err != nil {
				t.Errorf("once it is known that there is but one: got %v", err)
			}
		})
	})
}

// frozen is a way to the others on which one of them never answers.
type frozen struct {
	*wire
	addr string
}

func (f frozen) Call(ctx context.Context, addr string, m pb.Method, req, resp proto.Message) error {
	if addr == f.addr && m != pb.Method_METHOD_BLOB_EXISTS {
		<-ctx.Done()
		return ctx.Err()
	}
	return f.wire.Call(ctx, addr, m, req, resp)
}

func TestAWriteThatRunsOutOfTimeIsNotDoneWithFewerCopies(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, options{})
	b := random(smallSize)
	rank := c.rank(b.Digest)
	s := c.begin(Options{Placement: c.layout, Peers: frozen{c.wire, rank[0].addr}})
	err := s.Put(soon(t, 300*time.Millisecond), b.Digest, bytes.NewReader(b.Data))
	if err == nil && len(c.holders(b.Digest)) < 2 {
		t.Errorf("acknowledged, and held by %v only: nobody was asked to stand in", c.holders(b.Digest))
	}
}

func TestAFrozenDiskIsLeftBehindSoon(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, options{})
	b := random(smallSize)
	rank := c.rank(b.Digest)
	c.isolate(t, rank[0])
	c.wire.setCut(rank[0].addr, false)
	rank[0].wire.setDeaf(true)
	s := c.begin(Options{Placement: c.layout, Peers: frozen{c.wire, rank[0].addr}})
	ctx := soon(t, 2*(stepAsk+stepAnswer))
	if err := s.Put(ctx, b.Digest, bytes.NewReader(b.Data)); err != nil {
		t.Fatal(err)
	}
	if got := c.holders(b.Digest); !slices.Equal(got, []int{1, 2}) {
		t.Errorf("held by %v", got)
	}
	if r, err := s.Get(soon(t, 2*(stepAsk+stepAnswer)), b.Digest, 0); err != nil {
		t.Errorf("read: %v", err)
	} else if err := r.Close(); err != nil {
		t.Error(err)
	}
}
