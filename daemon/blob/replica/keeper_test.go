package replica

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/blob/disk"
	"github.com/remex-build/terraform-provider-remex/daemon/blob/repair"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

// fill stores blobs of both sizes.
func (c *testCluster) fill(n int) (bs []blob.Blob) {
	c.t.Helper()
	for i := range n {
		size := smallSize
		if i%10 == 0 {
			size = 100_000
		}
		bs = append(bs, random(size))
	}
	for i, err := range c.PutBatch(c.t.Context(), bs) {
		if err != nil {
			c.t.Fatalf("blob %d: %v", i, err)
		}
	}
	return bs
}

// kind is as what the node keeps d, 0 if it does not.
func (n *node) kind(d digest.Digest) disk.Kind {
	for next := 0; next < repair.Partitions; {
		var cs []disk.Copy
		cs, next = n.disk.List(func(p uint16) bool { return p == d.Prefix() }, next, 100)
		if slices.ContainsFunc(cs, func(c disk.Copy) bool { return c.Digest == d }) {
			return disk.Owned
		}
	}
	if n.has(d) {
		return disk.Cached
	}
	return 0
}

// whole waits until each blob is owned by its R owners and by nobody else.
func (c *testCluster) whole(bs []blob.Blob) {
	c.t.Helper()
	at := 0
	eventually(c.t, "each blob is where it belongs", func() bool {
		for ; at < len(bs); at++ {
			for i, n := range c.rank(bs[at].Digest) {
				if (n.kind(bs[at].Digest) == disk.Owned) != (i < c.o.r) {
					return false
				}
			}
		}
		return true
	})
}

func TestALostDisksBlobsAreCopiedAgain(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4, options{})
	bs := c.fill(300)
	c.whole(bs)
	c.nodes[3].stop()
	c.include(c.nodes[:3]...)
	c.whole(bs)
}

func TestADiskThatJoinsGetsItsShare(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, options{})
	bs := c.fill(300)
	c.nodes = append(c.nodes, startNode(t, 2, c.layout, c.o), startNode(t, 3, c.layout, c.o))
	c.include(c.nodes...)
	c.whole(bs)
	// What the former owners have is cached now.
	cached := 0
	for _, b := range bs {
		for _, n := range c.rank(b.Digest)[2:] {
			if n.kind(b.Digest) == disk.Cached {
				cached++
			}
		}
	}
	if cached == 0 {
		t.Error("nothing moved")
	}
}

func TestAnEmptiedDiskIsRefilled(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, options{})
	bs := c.fill(200)
	old := c.nodes[1]
	old.stop()
	c.nodes[1] = startNode(t, 9, c.layout, c.o)
	c.include(c.nodes...)
	c.whole(bs)
}

// While a disk settles it says of nothing that it is missing, and meanwhile
// whatever exists is found.
func TestNothingIsMissingWhileDisksComeAndGo(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, options{})
	bs := c.fill(300)
	var ds []digest.Digest
	for _, b := range bs {
		ds = append(ds, b.Digest)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		for ctx.Err() == nil {
			if got, err := c.Missing(ctx, ds); len(got) > 0 || err != nil && ctx.Err() == nil {
				done <- errors.Join(err, &MissingError{got})
				return
			}
		}
		done <- nil
	}()
	c.nodes = append(c.nodes, startNode(t, 3, c.layout, c.o))
	c.include(c.nodes...)
	c.whole(bs)
	c.include(c.nodes[1:]...)
	c.whole(bs)
	c.nodes[0].stop()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestAStandInHandsBack(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4, options{})
	b := random(smallSize)
	rank := c.rank(b.Digest)
	rank[0].disk.full.Store(true)
	if err := c.put(b); err != nil {
		t.Fatal(err)
	}
	if got := rank[2].kind(b.Digest); got != disk.Owned {
		t.Fatalf("the stand-in keeps it as %v", got)
	}
	// The one that refused does not deny it, even if it is the only one left to
	// ask.
	for _, n := range rank[1:] {
		c.wire.setCut(n.addr, true)
	}
	if got, err := c.Missing(soon(t, 300*time.Millisecond), []digest.Digest{b.Digest}); len(got) > 0 {
		t.Errorf("%v are missing, %v", got, err)
	}
	for _, n := range rank[1:] {
		c.wire.setCut(n.addr, false)
	}
	rank[0].disk.full.Store(false)
	c.whole([]blob.Blob{b})
}

// Who did not hear of a write that others took without it, as it was out of
// reach, does not deny the blob when it is back.
func TestWhoWasOutOfReachAsksBeforeItDenies(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4, options{})
	b := random(smallSize)
	rank := c.rank(b.Digest)
	off := rank[0]
	for _, n := range c.nodes {
		n.wire.setCut(off.addr, true)
	}
	c.wire.setCut(off.addr, true)
	off.wire.setDeaf(true)
	eventually(t, "it knows that it is out of reach", func() bool {
		st := off.store.Keeping()
		return st.Settled == 0
	})
	if err := c.put(b); err != nil {
		t.Fatal(err)
	}
	if got := c.holders(b.Digest); len(got) < 2 || got[0] != 1 || got[1] != 2 {
		t.Errorf("held by %v", got)
	}
	if ps := off.store.keeper.presence([]digest.Digest{b.Digest}, false, false); ps[0] != disk.Absent {
		t.Errorf("it says %v", ps[0])
	}
	for _, n := range c.nodes {
		n.wire.setCut(off.addr, false)
	}
	c.wire.setCut(off.addr, false)
	off.wire.setDeaf(false)
	c.whole([]blob.Blob{b})
}

func TestDrain(t *testing.T) {
	t.Parallel()
	leave := func(c *testCluster, nodes ...*node) {
		var stay, gone []int
		for i, n := range c.nodes {
			if slices.Contains(nodes, n) {
				gone = append(gone, i)
			} else {
				stay = append(stay, i)
			}
		}
		c.layout.leave(c.o.r, c.places(stay), c.places(gone))
	}
	t.Run("two of four at once", func(t *testing.T) {
		c := newCluster(t, 4, options{})
		bs := c.fill(300)
		errs := make(chan error, 2)
		for _, n := range c.nodes[:2] {
			if err := n.store.Drain().Admit(t.Context()); err != nil {
				t.Fatal(err)
			}
			go func() { errs <- n.store.Drain().Run(t.Context()) }()
		}
		leave(c, c.nodes[:2]...)
		for range 2 {
			if err := <-errs; err != nil {
				t.Fatal(err)
			}
		}
		for _, n := range c.nodes[:2] {
			if st := n.disk.Stats(); st.OwnedBlobs != 0 {
				t.Errorf("it still owns %d blobs", st.OwnedBlobs)
			}
			n.stop()
		}
		c.nodes = c.nodes[2:]
		c.include(c.nodes...)
		for _, b := range bs {
			if got, err := readAll(t, c, b.Digest, 0); err != nil || !bytes.Equal(got, b.Data) {
				t.Fatalf("%s: %v", b.Digest, err)
			}
		}
		c.whole(bs)
	})
	t.Run("takes nothing new", func(t *testing.T) {
		c := newCluster(t, 3, options{})
		n := c.nodes[0]
		n.store.keeper.leaves.Store(true)
		for range 20 {
			b := random(smallSize)
			if err := c.put(b); err != nil {
				t.Fatal(err)
			}
			if n.has(b.Digest) {
				t.Fatal("it took a blob")
			}
		}
	})
	t.Run("is refused without room elsewhere", func(t *testing.T) {
		c := newCluster(t, 3, options{})
		c.fill(300)
		for _, n := range c.nodes[1:] {
			n.disk.tiny.Store(true)
		}
		err := c.nodes[0].store.Drain().Admit(t.Context())
		if err == nil {
			t.Fatal("admitted")
		}
		t.Log(err)
	})
	t.Run("ends at its deadline, and says what was not safe", func(t *testing.T) {
		c := newCluster(t, 3, options{})
		c.fill(50)
		n := c.nodes[0]
		for _, o := range c.nodes[1:] {
			n.wire.setCut(o.addr, true)
		}
		leave(c, n)
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		err := n.store.Drain().Run(ctx)
		if err == nil {
			t.Fatal("it was safe")
		}
		if blobs, n := n.store.Drain().Left(); blobs == 0 || n == 0 {
			t.Errorf("%d blobs, %d bytes are left: %v", blobs, n, err)
		}
	})
	t.Run("is done at once when nobody is left", func(t *testing.T) {
		c := newCluster(t, 2, options{})
		c.fill(20)
		leave(c, c.nodes...)
		for _, n := range c.nodes {
			if err := n.store.Drain().Admit(t.Context()); err != nil {
				t.Error(err)
			}
			if err := n.store.Drain().Run(soon(t, 10*time.Second)); err != nil {
				t.Error(err)
			}
		}
	})
}

// What eviction has dropped repair does not bring back.
func TestWhatWasEvictedStaysAway(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, options{})
	b := random(smallSize)
	n := c.nodes[0]
	k := n.store.keeper
	n.disk.horizon.Store(uint32(time.Now().Unix()) + 10)
	c.nodes[1].keep(b)
	k.mu.Lock()
	k.core.Doubt(b.Digest.Prefix())
	k.mu.Unlock()
	c.settle(n)
	if n.store.Keeping().Missing > 0 || n.has(b.Digest) {
		t.Error("it wants it back")
	}
	n.disk.horizon.Store(0)
	k.mu.Lock()
	k.core.Doubt(b.Digest.Prefix())
	k.mu.Unlock()
	c.whole([]blob.Blob{b})
}
