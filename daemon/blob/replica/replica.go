// Package replica owns the cluster's content-addressable store: blobs spread
// over the disks of all workers, each on R of them, seen as one blob.Store.
//
// Store is the client's half, used by schedulers and workers alike. Server is
// the half that a worker offers to the others: its own disk. A blob that Put
// or PutFile or Upload has acknowledged lies verified on W disks, or on fewer
// when there is no further disk to ask, which is counted and made good as soon
// as there is one. A blob is said to be missing only when that is certain;
// otherwise the answer is blob.ErrUnavailable.
//
// The package does not compare disks with one another, nor move what belongs
// elsewhere: it mends what it stumbles upon.
package replica

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
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

// Peers reaches the other nodes; *rpc.Peers is one.
type Peers interface {
	// Call fails at once when addr refuses.
	Call(ctx context.Context, addr string, m pb.Method, req, resp proto.Message) error
	Conn(addr string) (*grpc.ClientConn, error)
	Reachable(addr string) bool
}

// Placement tells which disks own a blob; *placement.Placement is one.
type Placement interface {
	Table() *placement.Table
	// Changed is closed at the table's next change.
	Changed() <-chan struct{}
}

// Disk is a worker's own store; *disk.Store is one.
type Disk interface {
	ID() cluster.DiskID
	Presence(ds []digest.Digest, touch bool) []disk.Presence
	Get(ctx context.Context, d digest.Digest, off int64) (io.ReadCloser, error)
	GetBatch(ctx context.Context, ds []digest.Digest) []blob.Result
	Put(ctx context.Context, d digest.Digest, kind disk.Kind, r io.Reader) error
	PutBatch(ctx context.Context, kind disk.Kind, bs []blob.Blob) []error
	Create(d digest.Digest, kind disk.Kind) (*disk.Writer, error)
	Adopt(ctx context.Context, d digest.Digest, path string, kind disk.Kind) error
	SetKind(d digest.Digest, kind disk.Kind) bool
	Stats() disk.Stats

	// What follows is for keeping the disk what the cluster takes it to be.
	Loaded() bool
	Print(p uint16) disk.Print
	List(want func(p uint16) bool, after, limit int) (cs []disk.Copy, next int)
	Horizon(p uint16) uint32
	Restore(ctx context.Context, bs []blob.Blob, touches []uint32) []error
	RestoreFrom(ctx context.Context, d digest.Digest, r io.Reader, touch uint32) error
}

// Options are what a Store needs.
type Options struct {
	Peers     Peers
	Placement Placement
	Local     Disk   // this node's own disk; nil on schedulers
	SelfAddr  string // where other nodes reach this one; needed with Local
	R         int    // copies of a blob; 0 means 2
	W         int    // copies that an acknowledgement waits for; 0 means R
	// Settled reports whether Placement has had time to hear of all disks. Until
	// then nothing is said to be missing, and no write is done with fewer than W
	// copies. Nil means that it always has.
	Settled func() bool
	// Budget bounds the bytes that this node's streams, and its batches of
	// small blobs, hold at a time; 0 means 128 MiB. With Local, three quarters
	// of it are for what Server does.
	Budget int64
	// RepairRate bounds the bytes a second that the disk fetches to be whole; 0
	// means that only others' work does.
	RepairRate int64
	Log        *slog.Logger
	Registerer prometheus.Registerer
}

// The bounds of what goes between nodes.
const (
	// maxBatch keeps a message, with its digests and framing, under 4 MiB.
	maxBatch = 3 << 20
	// maxDigests is about 600 KiB of packed digests.
	maxDigests = 16 << 10
	chunkSize  = 256 << 10
	// streamCost is what reading a stream takes of a budget: the chunk in
	// hand, and what lies in the transport on its way here.
	streamCost    = 2 * chunkSize
	defaultBudget = 128 << 20
)

// How long is waited. Only askTimeout and the like end a call to a node that
// is there but does not answer; one whose port refuses fails at once.
const (
	// longestWait is what a request waits until somebody can tell.
	longestWait = 50 * time.Second
	askTimeout  = 5 * time.Second
	getTimeout  = 15 * time.Second
	putTimeout  = 20 * time.Second
	// touchGrace is how long an answer that is certain waits for the owners
	// that have still to be told of the use. They learn of it all the same.
	touchGrace = 250 * time.Millisecond
)

// Store is the cluster's blobs, as a blob.Store.
type Store struct {
	peers     Peers
	placement Placement
	local     Disk
	selfAddr  string
	r, w      int
	settled   func() bool
	log       *slog.Logger
	metrics   *metrics
	share     int64 // the size of each of the node's budgets
	budget    *rpc.Budget

	views   atomic.Pointer[view]
	keeper  *keeper // of Local
	flights flights
	repairs repairs

	base context.Context // of what outlives the request that began it
	stop context.CancelFunc

	mu     sync.Mutex // guards closed, and wg.Add against wg.Wait
	closed bool
	wg     sync.WaitGroup
}

var _ blob.Store = (*Store)(nil)

// New makes a Store. It works at once; Run does what goes on behind it.
func New(o Options) *Store {
	if o.R <= 0 {
		o.R = 2
	}
	if o.W <= 0 || o.W > o.R {
		o.W = o.R
	}
	if o.Budget <= 0 {
		o.Budget = defaultBudget
	}
	if o.Settled == nil {
		o.Settled = func() bool { return true }
	}
	share := o.Budget
	if o.Local != nil {
		share /= 4
	}
	s := &Store{
		peers: o.Peers, placement: o.Placement, local: o.Local, selfAddr: o.SelfAddr,
		r: o.R, w: o.W, settled: o.Settled, log: o.Log.With("part", "replica"),
		metrics: newMetrics(o.Registerer), share: share, budget: rpc.NewBudget(share),
	}
	s.base, s.stop = context.WithCancel(context.Background())
	s.flights.m = make(map[digest.Digest]*flight)
	s.repairs.init()
	if s.local != nil {
		s.keeper = newKeeper(s, o)
	}
	return s
}

// Run mends in the background what requests stumbled upon, until ctx ends. It
// returns when nothing that the Store began is left.
func (s *Store) Run(ctx context.Context) error {
	var keeping sync.WaitGroup
	if s.keeper != nil {
		keeping.Go(func() { s.keeper.run(ctx) })
	}
	s.runRepairs(ctx)
	keeping.Wait()
	s.stop()
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.wg.Wait()
	return nil
}

// Mend has the owners of d that lack it get it again, in the background. It
// never blocks: it is what a disk calls that has dropped a corrupt copy.
func (s *Store) Mend(d digest.Digest) {
	if s.keeper != nil && s.owned(d) {
		s.keeper.lost(d)
		return
	}
	s.repairs.add(d, s.metrics)
}

// spawn runs f beside its caller; Run waits for it. After Run's end f runs at
// once, and finds s.base cancelled.
func (s *Store) spawn(f func()) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		f()
		return
	}
	s.wg.Add(1)
	s.mu.Unlock()
	go func() {
		defer s.wg.Done()
		f()
	}()
}

// patience bounds how long a request may wait for somebody who can tell. It
// leaves a part of ctx's own deadline, so that the answer is still awaited.
func patience(ctx context.Context) (context.Context, context.CancelFunc) {
	d := longestWait
	if end, ok := ctx.Deadline(); ok {
		d = min(d, time.Until(end)*9/10)
	}
	return context.WithTimeout(ctx, d)
}

// pause waits before attempt number n+1: until the placement changes, or a
// little longer each time. It returns an error when there is no time left.
func pause(ctx context.Context, n int, changed <-chan struct{}) error {
	t := time.NewTimer(min(50*time.Millisecond<<min(n, 10), time.Second))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-changed:
		return nil
	case <-t.C:
		return nil
	}
}

// gaveUp is what to answer when a wait has ended without an answer: the
// caller's own end if that is why, else that nobody could tell.
func gaveUp(ctx context.Context) error {
	if err := ctx.Err(); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return blob.ErrUnavailable
}
