package replica

import (
	"context"
	"testing"

	"pgregory.net/rapid"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/cluster"
	"github.com/remex-build/terraform-provider-remex/daemon/cluster/placement"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
)

// Whoever refuses, sender and receivers agree about who stands in for whom: the
// copies end up on the first R disks in rank order that take them, each asked
// once, and all of them count.
func TestSenderAndReceiversAgreeOnStandIns(t *testing.T) {
	t.Parallel()
	var tables []*placement.Table
	for n := range 7 {
		var disks []placement.Disk
		for i := range n {
			disks = append(disks, placement.Disk{ID: [16]byte{byte(i + 1)}, Weight: uint32(i%3 + 1), Zone: string(rune('a' + i%2))})
		}
		for r := 1; r <= 3; r++ {
			tables = append(tables, placement.NewTable(disks, r))
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		tab := rapid.SampledFrom(tables).Draw(t, "table")
		r := tab.R()
		d := digest.Of(digest.SHA256, rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "data"))
		l := newLayout(1)
		l.tab = tab
		s := New(Options{Peers: nowhere{}, Placement: l, R: r, Log: quiet()})
		v := s.view()
		refuses := make(map[int32]bool)
		for i := range v.disks {
			refuses[int32(i)] = rapid.Bool().Draw(t, "refuses")
		}
		asked := make(map[int32]int)
		mu := make(chan struct{}, 1) // rounds asks disks side by side
		give := func(_ context.Context, v *view, on int32, bs []*placing) []outcome {
			mu <- struct{}{}
			asked[on]++
			<-mu
			if refuses[on] {
				return []outcome{{err: blob.ErrFull}}
			}
			if !v.counts(d, v.disks[on].ID, r, func(id cluster.DiskID) bool { return diskIDs(bs[0].skipped)[id] }) {
				return []outcome{{ack: pb.Ack_ACK_CACHED}}
			}
			return []outcome{{ack: pb.Ack_ACK_OWNED}}
		}
		b := &placing{d: d}
		s.rounds(context.Background(), v, []*placing{b}, give)
		want, deepest := 0, 0
		for i, on := range v.rank(d) {
			if want < r {
				deepest = i + 1
				if !refuses[on] {
					want++
				}
			}
		}
		if b.acks != want || b.elsewhere > 0 {
			t.Errorf("%d copies count and %d do not; %d disks take it", b.acks, b.elsewhere, want)
		}
		for i, on := range v.rank(d) {
			if i < deepest && asked[on] != 1 || i >= deepest && asked[on] != 0 {
				t.Errorf("the disk of rank %d was asked %d times", i, asked[on])
			}
		}
		again, err := s.settle(b)
		if want > 0 && (again || err != nil) {
			t.Errorf("with %d copies: again %v, %v", want, again, err)
		}
		if want == 0 && err == nil {
			t.Error("stored nowhere without an error")
		}
	})
}
