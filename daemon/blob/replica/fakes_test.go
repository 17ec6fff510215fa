package replica

import (
	"context"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/blob/disk"
	"github.com/remex-build/terraform-provider-remex/daemon/cluster"
	"github.com/remex-build/terraform-provider-remex/daemon/cluster/placement"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
	"github.com/remex-build/terraform-provider-remex/daemon/rpc"
)

// layout is the placement that a test decides.
type layout struct {
	mu      sync.Mutex
	tab     *placement.Table
	changed chan struct{}
}

func newLayout(r int, disks ...placement.Disk) *layout {
	return &layout{tab: placement.NewTable(disks, r), changed: make(chan struct{})}
}

func (l *layout) Table() *placement.Table {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.tab
}

func (l *layout) Changed() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changed
}

func (l *layout) set(r int, disks ...placement.Disk) { l.leave(r, disks, nil) }

// leave is set, with disks that are leaving.
func (l *layout) leave(r int, disks, leaving []placement.Disk) {
	var view cluster.View
	for i, d := range append(append([]placement.Disk(nil), disks...), leaving...) {
		state := cluster.Ready
		if i >= len(disks) {
			state = cluster.Draining
		}
		view.Members = append(view.Members, cluster.Member{
			ID: d.Node, Role: cluster.Worker, Disk: d.ID, Weight: d.Weight, Zone: d.Zone, Addr: d.Addr, State: state,
		})
	}
	tab, _ := placement.NewCore(r, time.Minute).Step(time.Now(), &view)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tab = tab
	close(l.changed)
	l.changed = make(chan struct{})
}

// wire is a node's way to the others, which a test can cut and watch.
type wire struct {
	*rpc.Peers
	mu    sync.Mutex
	cut   map[string]bool
	deaf  bool
	calls map[pb.Method]int
}

func newWire(t testing.TB, self string) *wire {
	p := rpc.NewPeers(rpc.PeersOptions{Self: self, Log: quiet()})
	t.Cleanup(func() { p.Close() })
	return &wire{Peers: p, cut: map[string]bool{}, calls: map[pb.Method]int{}}
}

func (w *wire) isCut(addr string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.cut[addr] || w.deaf
}

func (w *wire) setDeaf(deaf bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.deaf = deaf
}

func (w *wire) setCut(addr string, cut bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut[addr] = cut
}

func (w *wire) Call(ctx context.Context, addr string, m pb.Method, req, resp proto.Message) error {
	if w.isCut(addr) {
		return blob.ErrUnavailable
	}
	w.mu.Lock()
	w.calls[m]++
	w.mu.Unlock()
	return w.Peers.Call(ctx, addr, m, req, resp)
}

func (w *wire) Conn(addr string) (*grpc.ClientConn, error) {
	if w.isCut(addr) {
		return nil, blob.ErrUnavailable
	}
	return w.Peers.Conn(addr)
}

func (w *wire) count(m pb.Method) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.calls[m]
}

// moody is a disk that misbehaves when told to.
type moody struct {
	*disk.Store
	full    atomic.Bool
	unknown atomic.Bool // it has not read its index
	tiny    atomic.Bool // it has hardly any capacity
	horizon atomic.Uint32
}

func (m *moody) Stats() disk.Stats {
	st := m.Store.Stats()
	if m.tiny.Load() {
		st.Capacity = st.OwnedBytes + 1000
	}
	return st
}

func (m *moody) Horizon(p uint16) uint32 { return max(m.horizon.Load(), m.Store.Horizon(p)) }

func (m *moody) Restore(ctx context.Context, bs []blob.Blob, touches []uint32) []error {
	if m.full.Load() {
		errs := make([]error, len(bs))
		for i := range errs {
			errs[i] = blob.ErrFull
		}
		return errs
	}
	return m.Store.Restore(ctx, bs, touches)
}

func (m *moody) RestoreFrom(ctx context.Context, d digest.Digest, r io.Reader, touch uint32) error {
	if m.full.Load() {
		return blob.ErrFull
	}
	return m.Store.RestoreFrom(ctx, d, r, touch)
}

func (m *moody) Presence(ds []digest.Digest, touch bool) []disk.Presence {
	if m.unknown.Load() {
		return make([]disk.Presence, len(ds))
	}
	return m.Store.Presence(ds, touch)
}

func (m *moody) Put(ctx context.Context, d digest.Digest, kind disk.Kind, r io.Reader) error {
	if m.full.Load() {
		return blob.ErrFull
	}
	return m.Store.Put(ctx, d, kind, r)
}

func (m *moody) PutBatch(ctx context.Context, kind disk.Kind, bs []blob.Blob) []error {
	if m.full.Load() {
		errs := make([]error, len(bs))
		for i := range errs {
			errs[i] = blob.ErrFull
		}
		return errs
	}
	return m.Store.PutBatch(ctx, kind, bs)
}

func (m *moody) Create(d digest.Digest, kind disk.Kind) (*disk.Writer, error) {
	if m.full.Load() {
		return nil, blob.ErrFull
	}
	return m.Store.Create(d, kind)
}

func (m *moody) Adopt(ctx context.Context, d digest.Digest, path string, kind disk.Kind) error {
	if m.full.Load() {
		return blob.ErrFull
	}
	return m.Store.Adopt(ctx, d, path, kind)
}
