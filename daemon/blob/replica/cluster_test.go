package replica

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/blob/disk"
	"github.com/remex-build/terraform-provider-remex/daemon/cluster"
	"github.com/remex-build/terraform-provider-remex/daemon/cluster/placement"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	"github.com/remex-build/terraform-provider-remex/daemon/rpc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func quiet() *slog.Logger {
	if os.Getenv("REMEX_TEST_LOG") != "" {
		return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return slog.New(slog.DiscardHandler)
}

// node is a worker.
type node struct {
	t      testing.TB
	dir    string
	addr   string
	disk   *moody
	wire   *wire
	layout *layout
	store  *Store
	server *Server
	place  placement.Disk
	stop   func()
}

type options struct {
	r, w   int
	budget int64
}

func startNode(t testing.TB, i int, l *layout, o options) *node {
	n := &node{t: t, dir: t.TempDir(), layout: l}
	n.wire = newWire(t, fmt.Sprint("worker-", i))
	n.start(o)
	n.place = placement.Disk{ID: n.disk.ID(), Weight: 1, Node: fmt.Sprint("worker-", i), Addr: n.addr}
	t.Cleanup(func() { n.stop() })
	return n
}

// start starts a node, at the address that it had if it had one.
func (n *node) start(o options) {
	n.t.Helper()
	d, err := disk.Open(disk.Options{Dir: n.dir, Capacity: 256 << 20, Log: quiet(), OnCorrupt: func(d digest.Digest) { n.store.Mend(d) }})
	if err != nil {
		n.t.Fatal(err)
	}
	n.disk = &moody{Store: d}
	addr := "127.0.0.1:0"
	if n.addr != "" {
		addr = n.addr
	}
	lis, err := new(net.ListenConfig).Listen(n.t.Context(), "tcp", addr)
	if err != nil {
		n.t.Fatal(err)
	}
	n.addr = lis.Addr().String()
	n.store = New(Options{
		Peers: n.wire, Placement: n.layout, Local: n.disk, SelfAddr: n.addr,
		R: o.r, W: o.w, Budget: o.budget, Log: quiet(), Registerer: prometheus.NewRegistry(),
	})
	n.server = NewServer(n.store, quiet(), prometheus.NewRegistry())
	mux := rpc.NewMux(quiet())
	g := grpc.NewServer(rpc.ClusterServerOptions()...)
	n.server.Register(mux, g)
	mux.Register(g)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { g.Serve(lis) })
	wg.Go(func() { d.Run(ctx) })
	wg.Go(func() { n.store.Run(ctx) })
	wg.Go(func() { n.server.Run(ctx) })
	n.stop = sync.OnceFunc(func() {
		g.Stop()
		mux.Close()
		cancel()
		wg.Wait()
		d.Close()
	})
	eventually(n.t, "the index is read", func() bool { return !d.Stats().Loading })
}

// testCluster is some workers, and a scheduler's view of their blobs.
type testCluster struct {
	*Store
	t      testing.TB
	o      options
	layout *layout
	wire   *wire
	nodes  []*node
}

func newCluster(t testing.TB, disks int, o options) *testCluster {
	t.Helper()
	if o.r == 0 {
		o.r = 2
	}
	c := &testCluster{t: t, o: o, layout: newLayout(o.r), wire: newWire(t, "scheduler")}
	for i := range disks {
		c.nodes = append(c.nodes, startNode(t, i, c.layout, o))
	}
	c.include(c.nodes...)
	c.settle(c.nodes...)
	c.Store = New(Options{
		Peers: c.wire, Placement: c.layout, R: o.r, W: o.w, Budget: o.budget,
		Log: quiet(), Registerer: prometheus.NewRegistry(),
	})
	c.repairs.delay = 10 * time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { c.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return c
}

func (c *testCluster) places(of []int) (ds []placement.Disk) {
	for _, i := range of {
		ds = append(ds, c.nodes[i].place)
	}
	return ds
}

// include makes placement know these nodes, and no others.
func (c *testCluster) include(nodes ...*node) {
	var ds []placement.Disk
	for _, n := range nodes {
		ds = append(ds, n.place)
	}
	c.layout.set(c.o.r, ds...)
}

// settle waits until these nodes know all that there is.
func (c *testCluster) settle(nodes ...*node) {
	c.t.Helper()
	for _, n := range nodes {
		eventually(c.t, "the disk has settled", func() bool {
			st := n.store.Keeping()
			return st.View == c.layout.Table().ID() && st.Settled == st.Owned && st.Owned > 0
		})
	}
}

// isolate cuts everyone's way to n until the test is over.
func (c *testCluster) isolate(t *testing.T, n *node) {
	cut := func(cut bool) {
		c.wire.setCut(n.addr, cut)
		for _, o := range c.nodes {
			o.wire.setCut(n.addr, cut)
		}
	}
	cut(true)
	t.Cleanup(func() { cut(false) })
}

// doubt makes the node unsure of d, and keeps it from asking others until the
// test is over.
func (n *node) doubt(t *testing.T, d digest.Digest) {
	n.wire.setDeaf(true)
	t.Cleanup(func() { n.wire.setDeaf(false) })
	n.store.keeper.mu.Lock()
	defer n.store.keeper.mu.Unlock()
	n.store.keeper.core.Doubt(d.Prefix())
}

// rank is the nodes in d's rank order.
func (c *testCluster) rank(d digest.Digest) []*node {
	var ns []*node
	for _, p := range c.layout.Table().Rank(d.Prefix()) {
		ns = append(ns, c.node(p.ID))
	}
	return ns
}

func (c *testCluster) node(id cluster.DiskID) *node {
	for _, n := range c.nodes {
		if n.place.ID == id {
			return n
		}
	}
	c.t.Fatalf("no node has disk %s", id)
	return nil
}

func (n *node) has(d digest.Digest) bool {
	return n.disk.Store.Presence([]digest.Digest{d}, false)[0] == disk.Present
}

// holders is the positions in d's rank order that have it.
func (c *testCluster) holders(d digest.Digest) []int {
	at := []int{}
	for i, n := range c.rank(d) {
		if n.has(d) {
			at = append(at, i)
		}
	}
	return at
}

func (n *node) keep(b blob.Blob) {
	n.t.Helper()
	if err := n.disk.Store.Put(context.Background(), b.Digest, disk.Owned, bytes.NewReader(b.Data)); err != nil {
		n.t.Fatal(err)
	}
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("it never came to be that %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

var seed atomic.Uint64

// random is a blob like no other.
func random(size int) blob.Blob {
	data := make([]byte, size)
	var key [32]byte
	key[0], key[1] = byte(seed.Add(1)), byte(seed.Load()>>8)
	_, _ = rand.NewChaCha8(key).Read(data)
	return blob.Blob{Digest: digest.Of(digest.SHA256, data), Data: data}
}

const (
	smallSize = 1000
	largeSize = 1<<20 + 1234
)

func soon(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func counted(c prometheus.Counter) float64 {
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		panic(err)
	}
	return m.Counter.GetValue()
}
