package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync/atomic"

	"github.com/remex-build/terraform-provider-remex/daemon/actioncache"
	"github.com/remex-build/terraform-provider-remex/daemon/blob/disk"
	"github.com/remex-build/terraform-provider-remex/daemon/blob/replica"
	"github.com/remex-build/terraform-provider-remex/daemon/cluster"
	"github.com/remex-build/terraform-provider-remex/daemon/config"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
	"github.com/remex-build/terraform-provider-remex/daemon/sandbox"
	"github.com/remex-build/terraform-provider-remex/daemon/worker"
	"github.com/remex-build/terraform-provider-remex/daemon/worker/action"
)

// weightUnit is what one unit of a disk's weight in placement stands for.
const weightUnit = 64 << 20

// RunWorker runs a worker until ctx ends. Everything that it keeps is in c.Dir.
func RunWorker(ctx context.Context, c config.Worker, version string, log *slog.Logger) (err error) {
	reg := newRegistry(cluster.Worker.String(), version)
	log = log.With("node", c.Name)
	// The disk finds corrupt copies, and the store, which stands on it, mends
	// them.
	var mender atomic.Pointer[replica.Store]
	local, err := disk.Open(disk.Options{
		Dir: filepath.Join(c.Dir, "blobs"), Capacity: int64(c.DiskSize - c.Journal()), Reserve: int64(c.DiskReserve),
		MinAge: c.MinAge, ScrubRate: int64(c.ScrubRate), ScrubEvery: c.ScrubEvery, Fsync: c.Replicas == 1, Log: log, Registerer: reg,
		OnCorrupt: func(d digest.Digest) {
			if s := mender.Load(); s != nil {
				s.Mend(d)
			}
		},
	})
	if err != nil {
		return fmt.Errorf("open the disk in %s: %w", c.Dir, err)
	}
	defer func() { err = errors.Join(err, local.Close()) }()
	journal, err := actioncache.OpenJournal(actioncache.JournalOptions{
		Dir: filepath.Join(c.Dir, "actions"), Budget: int64(c.Journal()), Log: log, Registerer: reg,
	})
	if err != nil {
		return fmt.Errorf("open the action-cache journal in %s: %w", c.Dir, err)
	}
	defer func() { err = errors.Join(err, journal.Close()) }()
	b, err := newBase(ctx, c.Node, cluster.Member{
		Role: cluster.Worker, Pool: c.Pool, Disk: local.ID(), Weight: uint32(max(local.Capacity()/weightUnit, 1)),
	}, reg, version, log)
	if err != nil {
		return err
	}
	store := replica.New(replica.Options{
		Peers: b.peers, Placement: b.placement, Local: local, SelfAddr: b.members.Self().Addr,
		R: c.Replicas, W: c.Acks(), Settled: b.placement.Settled, Budget: int64(c.StreamBudget), RepairRate: int64(c.RepairRate), Log: log, Registerer: reg,
	})
	mender.Store(store)
	blobs := replica.NewServer(store, log, reg)
	blobs.Register(b.mux, b.server)
	cache := actioncache.New(actioncache.Options{
		Self: b.members.Self(), Members: b.members, Placement: b.placement, Peers: b.peers, Journal: journal,
		Log: log, Registerer: reg,
	})
	cache.Register(b.mux)
	w := &workerNode{base: b, c: c, store: store, local: local, cache: cache}
	return w.run(ctx, blobs.Run, journal.Run)
}

// workerNode is what a worker's actions stand on.
type workerNode struct {
	*base
	c     config.Worker
	store *replica.Store
	local *disk.Store
	cache *actioncache.Client
	link  *worker.Link
}

func (w *workerNode) run(ctx context.Context, blobs, journal part) (err error) {
	first := []part{w.announce(w.ready, func(bool) {}), w.serveOps(w.ready)}
	if w.c.Executors > 0 {
		actions, err := w.connect()
		if err != nil {
			w.close()
			return fmt.Errorf("worker %s: %w", w.c.Name, err)
		}
		defer func() { err = errors.Join(err, actions.Close()) }()
	} else {
		// Schedulers wait for every worker in view to tell what it runs.
		w.link = worker.New(w.linkOptions())
	}
	first = append(first, w.link.Run)
	w.status.Fill = w.describe
	w.log.Info("serving", "cluster", w.clusterLis.Addr().String(), "ops", w.opsLis.Addr().String(), "disk", w.local.ID().String())
	err = w.base.run(ctx, first,
		w.cache.Run,
		w.serveCluster,
		blobs, // waits for its streams, which the server has ended
		w.store.Run,
		journal,
		w.local.Run,
	)
	if err != nil {
		return fmt.Errorf("worker %s: %w", w.c.Name, err)
	}
	return nil
}

// connect makes what runs actions, and the link that tells it which.
func (w *workerNode) connect() (*action.Actions, error) {
	actions, err := action.New(action.Options{
		Store: w.store, Disk: w.local, ActionCache: w.cache, Worker: w.c.Name,
		Dir: filepath.Join(w.c.Dir, "exec"), Executors: w.c.Executors, UIDBase: w.c.ActionUIDBase,
		Limits: sandbox.Limits{
			MaxBytes: int64(w.c.ActionBytes), MaxInodes: int64(w.c.ActionInodes), Reserve: int64(w.c.DiskReserve), MaxStream: int64(w.c.StdoutLimit),
		},
		Log: w.log, Registerer: w.reg,
	})
	if err != nil {
		return nil, err
	}
	o := w.linkOptions()
	o.Actions = actions
	w.link = worker.New(o)
	return actions, nil
}

// linkOptions are those of a link that runs nothing.
func (w *workerNode) linkOptions() worker.Options {
	return worker.Options{
		Self: w.members.Self(), Members: w.members, Peers: w.peers, Pool: w.c.Pool, Properties: w.c.Properties,
		Executors: w.c.Executors, Log: w.log, Registerer: w.reg,
	}
}

// ready: a worker that no scheduler knows is of no use to anybody.
func (w *workerNode) ready() error {
	if len(w.members.View().Role(cluster.Scheduler)) == 0 {
		return errors.New("no scheduler has been seen yet")
	}
	return nil
}

func (w *workerNode) describe(st *pb.NodeStatus) {
	d := w.local.Stats()
	st.Executors = uint32(w.c.Executors)
	st.Running = uint32(w.link.Running())
	st.DiskCapacity, st.DiskUsed, st.Blobs = d.Capacity, d.Used, d.OwnedBlobs+d.CachedBlobs
	st.DiskFull, st.DiskLoading = d.Full, d.Loading
	k := w.store.Keeping()
	st.RepairBlobs, st.RepairBytes, st.RepairLagMs = int64(k.Missing), k.MissingBytes, k.Lag.Milliseconds()
	st.ForeignBlobs, st.Partitions, st.Unsettled = k.Foreign, uint32(k.Owned), uint32(k.Owned-k.Settled)
}
