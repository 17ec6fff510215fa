package replica

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/cluster/placement"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
)

// Disks are named by their position in the blob's rank order.
func TestWhatMissingSays(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4, options{r: 2})
	for _, x := range []struct {
		name    string
		r       int
		disks   int
		away    []int // cannot be reached
		loading []int // cannot tell yet
		unsure  []int // have not settled
		holders []int
		want    verdict
	}{
		{name: "nobody has it", r: 2, disks: 3, want: missing},
		{name: "both owners have it", r: 2, disks: 3, holders: []int{0, 1}, want: present},
		{name: "one owner has it", r: 2, disks: 3, holders: []int{1}, want: present},
		{name: "a stand-in has it", r: 2, disks: 3, unsure: []int{0, 1}, holders: []int{2}, want: present},
		{name: "the last in rank has it", r: 2, disks: 4, unsure: []int{0, 1}, holders: []int{3}, want: present},
		{name: "one owner is away, the other has it", r: 2, disks: 3, away: []int{0}, holders: []int{0, 1}, want: present},
		{name: "one owner is away, a stand-in has it", r: 2, disks: 3, away: []int{0}, unsure: []int{1}, holders: []int{2}, want: present},
		{name: "one owner is away", r: 2, disks: 3, away: []int{0}, want: missing},
		{name: "one owner is away, the other has not settled", r: 2, disks: 3, away: []int{0}, unsure: []int{1}, want: unsure},
		{name: "one owner has not settled", r: 2, disks: 3, unsure: []int{0}, want: missing},
		{name: "no owner has settled", r: 2, disks: 3, unsure: []int{0, 1}, want: unsure},
		{name: "one that is no owner is away", r: 2, disks: 3, away: []int{2}, want: missing},
		{name: "both owners are away", r: 2, disks: 3, away: []int{0, 1}, want: unsure},
		{name: "all that are no owners are away", r: 2, disks: 4, away: []int{2, 3}, want: missing},
		{name: "two are away of three copies", r: 3, disks: 4, away: []int{0, 1}, want: missing},
		{name: "three are away of three copies", r: 3, disks: 4, away: []int{0, 1, 2}, want: unsure},
		{name: "all are away", r: 2, disks: 3, away: []int{0, 1, 2}, want: unsure},
		{name: "all are away and have it", r: 2, disks: 2, away: []int{0, 1}, holders: []int{0, 1}, want: unsure},
		{name: "one is reading its index", r: 2, disks: 3, loading: []int{0}, want: missing},
		{name: "both are reading their indexes", r: 2, disks: 3, loading: []int{0, 1}, want: unsure},
		{name: "one reads its index, another is away", r: 2, disks: 3, loading: []int{0}, away: []int{1}, want: unsure},
		{name: "one reads its index, the other has it", r: 2, disks: 2, loading: []int{0}, holders: []int{0, 1}, want: present},
		{name: "a single copy's disk is there", r: 1, disks: 3, want: missing},
		{name: "a single copy's disk is away", r: 1, disks: 3, away: []int{0}, want: unsure},
		{name: "the only disk is there", r: 2, disks: 1, want: missing},
		{name: "the only disk is away", r: 2, disks: 1, away: []int{0}, want: unsure},
		{name: "one is away of two disks", r: 2, disks: 2, away: []int{1}, want: missing},
		{name: "one is away of two disks for three copies", r: 3, disks: 2, away: []int{1}, want: missing},
		{name: "there are no disks", r: 2, disks: 0, want: unsure},
	} {
		t.Run(x.name, func(t *testing.T) {
			var ds []placement.Disk
			for _, n := range c.nodes[:x.disks] {
				ds = append(ds, n.place)
			}
			c.layout.set(x.r, ds...)
			c.settle(c.nodes[:x.disks]...)
			s := New(Options{Peers: c.wire, Placement: c.layout, R: x.r, Log: quiet()})
			b := random(smallSize)
			rank := c.rank(b.Digest)
			for _, i := range x.holders {
				rank[i].keep(b)
			}
			for _, i := range x.unsure {
				rank[i].doubt(t, b.Digest)
			}
			for _, i := range x.away {
				c.isolate(t, rank[i])
			}
			for _, i := range x.loading {
				rank[i].disk.unknown.Store(true)
				defer rank[i].disk.unknown.Store(false)
			}
			ctx := func() context.Context {
				if x.want == unsure {
					return soon(t, 60*time.Millisecond)
				}
				return t.Context()
			}
			got, err := s.Missing(ctx(), []digest.Digest{b.Digest})
			switch x.want {
			case present:
				if err != nil || len(got) != 0 {
					t.Errorf("got %v, %v; it is present", got, err)
				}
			case missing:
				if err != nil || !slices.Equal(got, []digest.Digest{b.Digest}) {
					t.Errorf("got %v, %v; it is missing", got, err)
				}
			default:
				if !errors.Is(err, blob.ErrUnavailable) {
					t.Errorf("got %v, %v; nobody could tell", got, err)
				}
			}
			// Reads go by the same rule.
			_, err = s.Get(ctx(), b.Digest, 0)
			wantErr := map[verdict]error{present: nil, missing: blob.ErrNotFound, unsure: blob.ErrUnavailable}[x.want]
			if !errors.Is(err, wantErr) {
				t.Errorf("read: got %v, want %v", err, wantErr)
			}
			s.stop()
			s.wg.Wait()
		})
	}
}

func TestMissing(t *testing.T) {
	t.Parallel()
	t.Run("waits for a disk that comes back", func(t *testing.T) {
		c := newCluster(t, 2, options{})
		b := random(smallSize)
		for _, n := range c.nodes {
			c.wire.setCut(n.addr, true)
		}
		time.AfterFunc(100*time.Millisecond, func() {
			for _, n := range c.nodes {
				c.wire.setCut(n.addr, false)
			}
		})
		got, err := c.Missing(t.Context(), []digest.Digest{b.Digest})
		if err != nil || len(got) != 1 {
			t.Errorf("got %v, %v", got, err)
		}
	})
	t.Run("never says that the empty blob is", func(t *testing.T) {
		c := newCluster(t, 0, options{})
		got, err := c.Missing(t.Context(), []digest.Digest{digest.Empty(digest.SHA256), digest.Empty(digest.BLAKE3)})
		if err != nil || len(got) != 0 {
			t.Errorf("got %v, %v", got, err)
		}
	})
	t.Run("asks about many in a few calls, and keeps their order", func(t *testing.T) {
		c := newCluster(t, 3, options{})
		var ds, want []digest.Digest
		var bs []blob.Blob
		for i := range 10_000 {
			data := fmt.Append(nil, "blob ", i)
			d := digest.Of(digest.SHA256, data)
			ds = append(ds, d)
			if i%100 == 0 {
				bs = append(bs, blob.Blob{Digest: d, Data: data})
			} else {
				want = append(want, d)
			}
		}
		if err := errors.Join(c.PutBatch(t.Context(), bs)...); err != nil {
			t.Fatal(err)
		}
		got, err := c.Missing(t.Context(), ds)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(len(want), len(got)); diff != "" || !slices.Equal(got, want) {
			t.Errorf("%d are missing, want %d", len(got), len(want))
		}
		if n := c.wire.count(pb.Method_METHOD_BLOB_EXISTS); n > 6 {
			t.Errorf("took %d calls", n)
		}
	})
}

func TestWhatIsFoundWithoutAnOwnerIsMended(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, options{})
	b := random(smallSize)
	t.Run("", func(t *testing.T) {
		c.rank(b.Digest)[0].doubt(t, b.Digest)
		c.rank(b.Digest)[1].doubt(t, b.Digest)
		c.rank(b.Digest)[2].keep(b)
		if got, err := c.Missing(t.Context(), []digest.Digest{b.Digest}); err != nil || len(got) > 0 {
			t.Fatalf("got %v, %v", got, err)
		}
	})
	eventually(t, "the owners have it", func() bool { return len(c.holders(b.Digest)) == 3 })
}

func BenchmarkMissing(b *testing.B) {
	l := newLayout(2)
	var disks []placement.Disk
	for i := range 3 {
		disks = append(disks, placement.Disk{ID: [16]byte{byte(i + 1)}, Weight: 1})
	}
	l.set(2, disks...)
	s := New(Options{Placement: l, Log: quiet(), Peers: nowhere{}})
	ds := make([]digest.Digest, 10_000)
	for i := range ds {
		ds[i] = digest.Of(digest.SHA256, fmt.Append(nil, i))
	}
	for b.Loop() {
		if _, err := s.Missing(b.Context(), ds); err != nil {
			b.Fatal(err)
		}
	}
	s.stop()
	s.wg.Wait()
}
