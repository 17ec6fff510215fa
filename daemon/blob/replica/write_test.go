package replica

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/iotest"
	"time"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

// bothSizes runs f with a size that travels in messages, and one that streams.
func bothSizes(t *testing.T, f func(t *testing.T, size int)) {
	t.Run("small", func(t *testing.T) { f(t, smallSize) })
	t.Run("large", func(t *testing.T) { f(t, largeSize) })
}

func (c *testCluster) put(b blob.Blob) error {
	return c.Put(c.t.Context(), b.Digest, bytes.NewReader(b.Data))
}

func TestPut(t *testing.T) {
	t.Parallel()
	bothSizes(t, func(t *testing.T, size int) {
		c := newCluster(t, 4, options{})
		t.Run("brings a blob to its owners", func(t *testing.T) {
			b := random(size)
			if err := c.put(b); err != nil {
				t.Fatal(err)
			}
			if got := c.holders(b.Digest); !slices.Equal(got, []int{0, 1}) {
				t.Errorf("held by %v", got)
			}
		})
		t.Run("lets the next in rank stand in for a full disk", func(t *testing.T) {
			b := random(size)
			full := c.rank(b.Digest)[0]
			full.disk.full.Store(true)
			defer full.disk.full.Store(false)
			if err := c.put(b); err != nil {
				t.Fatal(err)
			}
			if got := c.holders(b.Digest); !slices.Equal(got, []int{1, 2}) {
				t.Errorf("held by %v", got)
			}
		})
		t.Run("gets it through others to disks that it does not reach", func(t *testing.T) {
			b := random(size)
			rank := c.rank(b.Digest)
			for _, n := range rank[:2] {
				c.wire.setCut(n.addr, true)
				defer c.wire.setCut(n.addr, false)
			}
			if err := c.put(b); err != nil {
				t.Fatal(err)
			}
			if got := c.holders(b.Digest); len(got) < 2 || got[0] != 0 || got[1] != 1 {
				t.Errorf("held by %v", got)
			}
			if n := counted(c.metrics.short); n > 0 {
				t.Errorf("%v writes were short", n)
			}
		})
		t.Run("is ErrFull when none can take it", func(t *testing.T) {
			for _, n := range c.nodes {
				n.disk.full.Store(true)
				defer n.disk.full.Store(false)
			}
			if err := c.put(random(size)); !errors.Is(err, blob.ErrFull) {
				t.Errorf("got %v", err)
			}
		})
		t.Run("is done with one copy when all others are full", func(t *testing.T) {
			b := random(size)
			for _, n := range c.rank(b.Digest)[:3] {
				n.disk.full.Store(true)
				defer n.disk.full.Store(false)
			}
			before := counted(c.metrics.short)
			if err := c.put(b); err != nil {
				t.Fatal(err)
			}
			if got := c.holders(b.Digest); !slices.Equal(got, []int{3}) {
				t.Errorf("held by %v", got)
			}
			if n := counted(c.metrics.short) - before; n != 1 {
				t.Errorf("%v short writes were counted", n)
			}
		})
		t.Run("is ErrMismatch for other bytes, and nobody stands in", func(t *testing.T) {
			b := random(size)
			b.Data[size/2]++
			before := counted(c.metrics.skips)
			if err := c.put(b); !errors.Is(err, blob.ErrMismatch) {
				t.Errorf("got %v", err)
			}
			b.Data[size/2]--
			for _, data := range [][]byte{b.Data[:size-1], append(slices.Clone(b.Data), 0)} {
				if err := c.Put(t.Context(), b.Digest, bytes.NewReader(data)); !errors.Is(err, blob.ErrMismatch) {
					t.Errorf("%d bytes: got %v", len(data), err)
				}
			}
			if got := c.holders(b.Digest); len(got) > 0 {
				t.Errorf("held by %v", got)
			}
			if n := counted(c.metrics.skips) - before; n > 2 {
				t.Errorf("%v disks were skipped", n)
			}
		})
		t.Run("passes on why its reader failed", func(t *testing.T) {
			b := random(size)
			broken := errors.New("broken")
			r := io.MultiReader(bytes.NewReader(b.Data[:size/2]), iotest.ErrReader(broken))
			if err := c.Put(t.Context(), b.Digest, r); !errors.Is(err, broken) {
				t.Errorf("got %v", err)
			}
		})
		t.Run("ends with its context", func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			b := random(size)
			if err := c.Put(ctx, b.Digest, bytes.NewReader(b.Data)); !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
		})
	})
}

func TestAShortWriteIsMadeGoodWhenADiskJoins(t *testing.T) {
	t.Parallel()
	bothSizes(t, func(t *testing.T, size int) {
		c := newCluster(t, 2, options{})
		c.include(c.nodes[0])
		b := random(size)
		if err := c.put(b); err != nil {
			t.Fatal(err)
		}
		if c.nodes[1].has(b.Digest) {
			t.Fatal("a disk outside of placement has it")
		}
		c.include(c.nodes...)
		eventually(t, "both have it", func() bool { return len(c.holders(b.Digest)) == 2 })
	})
}

func TestDisksThatSeeAnotherPlacementKeepACachedCopy(t *testing.T) {
	t.Parallel()
	bothSizes(t, func(t *testing.T, size int) {
		c := newCluster(t, 3, options{})
		b := random(size)
		rank := c.rank(b.Digest)
		// To the sender the last in rank is an owner, since it has yet to hear
		// of the first.
		own := newLayout(2, rank[1].place, rank[2].place)
		s := New(Options{Peers: c.wire, Placement: own, R: 2, Log: quiet()})
		time.AfterFunc(200*time.Millisecond, func() { own.set(2, rank[0].place, rank[1].place, rank[2].place) })
		if err := s.Put(t.Context(), b.Digest, bytes.NewReader(b.Data)); err != nil {
			t.Fatal(err)
		}
		if got := c.holders(b.Digest); !slices.Equal(got, []int{0, 1, 2}) {
			t.Errorf("held by %v", got)
		}
		if st := rank[2].disk.Stats(); st.OwnedBlobs != 0 || st.CachedBlobs != 1 {
			t.Errorf("the disk that is no owner has %d owned and %d cached", st.OwnedBlobs, st.CachedBlobs)
		}
	})
}

// pausing calls f after the first n bytes.
type pausing struct {
	r io.Reader
	n int
	f func()
}

func (p *pausing) Read(b []byte) (int, error) {
	if p.f != nil && p.n <= 0 {
		p.f()
		p.f = nil
	}
	n, err := p.r.Read(b[:min(len(b), 64<<10)])
	p.n -= n
	return n, err
}

func TestAStandInPullsWhatAnOwnerBrokeOff(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, options{})
	b := random(largeSize)
	rank := c.rank(b.Digest)
	r := &pausing{r: bytes.NewReader(b.Data), n: largeSize / 2, f: rank[0].stop}
	if err := c.Put(t.Context(), b.Digest, r); err != nil {
		t.Fatal(err)
	}
	if !rank[1].has(b.Digest) || !rank[2].has(b.Digest) {
		t.Error("owner and stand-in don't both have it")
	}
}

func TestPutBatchAnswersForEachBlob(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, options{})
	var bs []blob.Blob
	for range 300 {
		bs = append(bs, random(50_000)) // 15 MB: more than fits a message
	}
	bs[7].Data = bs[8].Data
	bs[9].Data = nil
	bs = append(bs, blob.Blob{Digest: digest.Empty(digest.SHA256)})
	for i, err := range c.PutBatch(t.Context(), bs) {
		switch {
		case i == 7 || i == 9:
			if !errors.Is(err, blob.ErrMismatch) {
				t.Errorf("blob %d: got %v", i, err)
			}
		case err != nil:
			t.Errorf("blob %d: %v", i, err)
		case i < 300 && len(c.holders(bs[i].Digest)) < 2:
			t.Errorf("blob %d has %v", i, c.holders(bs[i].Digest))
		}
	}
}

func TestPutFile(t *testing.T) {
	t.Parallel()
	bothSizes(t, func(t *testing.T, size int) {
		c := newCluster(t, 4, options{})
		for i := range 4 {
			t.Run(fmt.Sprint("on the disk of rank ", i), func(t *testing.T) {
				b := random(size)
				n := c.rank(b.Digest)[i]
				path := filepath.Join(n.dir, "output") // on the disk's file system
				if err := os.WriteFile(path, b.Data, 0o600); err != nil {
					t.Fatal(err)
				}
				if err := n.store.PutFile(t.Context(), b.Digest, path); err != nil {
					t.Fatal(err)
				}
				want := []int{0, 1}
				if i > 1 {
					want = append(want, i)
				}
				if got := c.holders(b.Digest); !slices.Equal(got, want) {
					t.Errorf("held by %v, want %v", got, want)
				}
			})
		}
		t.Run("on a full disk", func(t *testing.T) {
			b := random(size)
			n := c.rank(b.Digest)[0]
			n.disk.full.Store(true)
			path := filepath.Join(n.dir, "output")
			if err := os.WriteFile(path, b.Data, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := n.store.PutFile(t.Context(), b.Digest, path); err != nil {
				t.Fatal(err)
			}
			if got := c.holders(b.Digest); !slices.Equal(got, []int{1, 2}) {
				t.Errorf("held by %v", got)
			}
		})
	})
}
