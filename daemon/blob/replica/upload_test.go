package replica

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

var key = UploadKey{Principal: "me", Instance: "main", UUID: "1234"}

// upload sends b from off to end, and finishes if that is all.
func (c *testCluster) upload(ctx context.Context, b blob.Blob, off, end int) error {
	u, err := c.Upload(ctx, key, b.Digest, int64(off))
	if err != nil {
		return err
	}
	defer u.Close()
	for off < end {
		n := min(100_000, end-off)
		if err := u.Write(b.Data[off : off+n]); err != nil {
			return err
		}
		off += n
		if got := u.Offset(); got != int64(off) && !u.Complete() {
			return fmt.Errorf("offset %d after %d bytes", got, off)
		}
	}
	if end < len(b.Data) {
		return nil
	}
	return u.Finish()
}

func (c *testCluster) offset(b blob.Blob) (int64, bool) {
	off, complete, err := c.UploadOffset(c.t.Context(), key, b.Digest)
	if err != nil {
		c.t.Errorf("offset: %v", err)
	}
	return off, complete
}

func TestUpload(t *testing.T) {
	t.Parallel()
	bothSizes(t, func(t *testing.T, size int) {
		c := newCluster(t, 3, options{})
		b := random(size)
		if off, complete := c.offset(b); off != 0 || complete {
			t.Errorf("at %d, complete %v before anything came", off, complete)
		}
		if err := c.upload(t.Context(), b, 0, size); err != nil {
			t.Fatal(err)
		}
		if got := c.holders(b.Digest); !slices.Equal(got, []int{0, 1}) {
			t.Errorf("held by %v", got)
		}
		if off, complete := c.offset(b); off != int64(size) || !complete {
			t.Errorf("at %d, complete %v", off, complete)
		}
		t.Run("of other bytes is ErrMismatch, and begins anew", func(t *testing.T) {
			b := random(size)
			b.Data[1]++
			if err := c.upload(t.Context(), b, 0, size); !errors.Is(err, blob.ErrMismatch) {
				t.Errorf("got %v", err)
			}
			if off, complete := c.offset(b); off != 0 || complete {
				t.Errorf("at %d, complete %v", off, complete)
			}
			b.Data[1]--
			if err := c.upload(t.Context(), b, 0, size); err != nil {
				t.Error(err)
			}
		})
		t.Run("of too many or too few bytes is ErrMismatch", func(t *testing.T) {
			b := random(size)
			u, err := c.Upload(t.Context(), key, b.Digest, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer u.Close()
			if err := u.Write(append(slices.Clone(b.Data), 1)); !errors.Is(err, blob.ErrMismatch) {
				t.Errorf("too many: %v", err)
			}
			u, err = c.Upload(t.Context(), key, b.Digest, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer u.Close()
			if err := errors.Join(u.Write(b.Data[1:]), u.Finish()); !errors.Is(err, blob.ErrMismatch) {
				t.Errorf("too few: %v", err)
			}
		})
	})
	t.Run("of the empty blob is complete", func(t *testing.T) {
		c := newCluster(t, 0, options{})
		u, err := c.Upload(t.Context(), key, digest.Empty(digest.SHA256), 0)
		if err != nil || !u.Complete() || u.Finish() != nil {
			t.Errorf("got %v", err)
		}
	})
	t.Run("of what is stored is complete", func(t *testing.T) {
		c := newCluster(t, 3, options{})
		b := random(largeSize)
		if err := c.put(b); err != nil {
			t.Fatal(err)
		}
		u, err := c.Upload(t.Context(), key, b.Digest, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		if !u.Complete() || u.Offset() != largeSize || u.Finish() != nil {
			t.Errorf("complete %v at %d", u.Complete(), u.Offset())
		}
	})
}

func TestAnUploadIsResumed(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, options{})
	const half = largeSize / 2
	broken := func(t *testing.T) blob.Blob {
		t.Helper()
		b := random(largeSize)
		ctx, cancel := context.WithCancel(t.Context())
		if err := c.upload(ctx, b, 0, half); err != nil {
			t.Fatal(err)
		}
		cancel()
		return b
	}
	t.Run("where it broke off", func(t *testing.T) {
		b := broken(t)
		off, complete := c.offset(b)
		if off != half || complete {
			t.Fatalf("at %d, complete %v", off, complete)
		}
		if err := c.upload(t.Context(), b, int(off), largeSize); err != nil {
			t.Fatal(err)
		}
		if got := c.holders(b.Digest); !slices.Equal(got, []int{0, 1}) {
			t.Errorf("held by %v", got)
		}
	})
	t.Run("before where it broke off", func(t *testing.T) {
		b := broken(t)
		off, _ := c.offset(b)
		if err := c.upload(t.Context(), b, int(off-1000), largeSize); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("not beyond", func(t *testing.T) {
		b := broken(t)
		off, _ := c.offset(b)
		if err := c.upload(t.Context(), b, int(off+1), largeSize); !errors.Is(err, blob.ErrUnavailable) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("by nobody else", func(t *testing.T) {
		b := broken(t)
		if off, _ := c.offset(b); off == 0 {
			t.Fatal("nothing is there")
		}
		other := key
		other.Principal = "you"
		if off, complete, err := c.UploadOffset(t.Context(), other, b.Digest); off != 0 || complete || err != nil {
			t.Errorf("at %d, complete %v, %v", off, complete, err)
		}
	})
	t.Run("from the start", func(t *testing.T) {
		b := broken(t)
		if err := c.upload(t.Context(), b, 0, largeSize); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("and taken over from a stream that hangs", func(t *testing.T) {
		b := random(largeSize)
		u, err := c.Upload(t.Context(), key, b.Digest, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		if err := u.Write(b.Data[:half]); err != nil {
			t.Fatal(err)
		}
		if err := c.upload(t.Context(), b, 0, largeSize); err != nil {
			t.Fatal(err)
		}
		if got := c.holders(b.Digest); !slices.Equal(got, []int{0, 1}) {
			t.Errorf("held by %v", got)
		}
	})
	t.Run("from the start after its first owner did", func(t *testing.T) {
		b := broken(t)
		if off, _ := c.offset(b); off == 0 {
			t.Fatal("nothing is there")
		}
		first := c.rank(b.Digest)[0]
		first.stop()
		if off, complete := c.offset(b); off != 0 || complete {
			t.Errorf("at %d, complete %v while the first owner is down", off, complete)
		}
		first.start(c.o)
		eventually(t, "it is reached again", func() bool {
			_, err := c.Missing(soon(t, 1e9), []digest.Digest{b.Digest})
			return err == nil && c.peers.Reachable(first.addr)
		})
		if off, complete := c.offset(b); off != 0 || complete {
			t.Errorf("at %d, complete %v", off, complete)
		}
		if err := c.upload(t.Context(), b, half, largeSize); !errors.Is(err, blob.ErrUnavailable) {
			t.Errorf("going on got %v", err)
		}
		if err := c.upload(t.Context(), b, 0, largeSize); err != nil {
			t.Fatal(err)
		}
		if !first.has(b.Digest) {
			t.Error("the first owner lacks it")
		}
	})
}

func TestParkedUploadsAreBounded(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, options{r: 1})
	n := c.nodes[0]
	n.server.uploads.count = 3
	var bs []blob.Blob
	for range 5 {
		b := random(largeSize)
		ctx, cancel := context.WithCancel(t.Context())
		if err := c.upload(ctx, b, 0, 1<<20); err != nil {
			t.Fatal(err)
		}
		cancel()
		if off, _ := c.offset(b); off != 1<<20 {
			t.Fatalf("%d bytes are parked", off)
		}
		bs = append(bs, b)
	}
	for i, b := range bs {
		if off, _ := c.offset(b); (off > 0) != (i >= 2) {
			t.Errorf("upload %d is at %d", i, off)
		}
	}
	n.server.uploads.drop(func(*parked) bool { return true })
	if got := n.server.uploads.bytes; got != 0 {
		t.Errorf("%d bytes are left", got)
	}
	if err := c.Put(t.Context(), bs[0].Digest, bytes.NewReader(bs[0].Data)); err != nil {
		t.Fatal(err)
	}
}
