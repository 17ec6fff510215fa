package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"

	"google.golang.org/grpc"

	"github.com/remex-build/terraform-provider-remex/daemon/actioncache"
	"github.com/remex-build/terraform-provider-remex/daemon/admin"
	"github.com/remex-build/terraform-provider-remex/daemon/blob/replica"
	"github.com/remex-build/terraform-provider-remex/daemon/cluster"
	"github.com/remex-build/terraform-provider-remex/daemon/cluster/placement"
	"github.com/remex-build/terraform-provider-remex/daemon/config"
	"github.com/remex-build/terraform-provider-remex/daemon/frontend"
	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
	"github.com/remex-build/terraform-provider-remex/daemon/rpc"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/match"
)

// emptyPools are those that c declares. It has been validated.
func emptyPools(c config.Scheduler) (pools []*match.Profile) {
	for _, p := range c.EmptyPools {
		if name, props, err := config.ParsePool(p); err == nil {
			pools = append(pools, match.NewProfile(name, props))
		}
	}
	return pools
}

// RunScheduler runs a scheduler until ctx ends. It keeps nothing on disk.
func RunScheduler(ctx context.Context, c config.Scheduler, version string, log *slog.Logger) error {
	publicLis, err := listen(ctx, "public", c.ListenPublic)
	if err != nil {
		return err
	}
	defer publicLis.Close()
	reg := newRegistry(cluster.Scheduler.String(), version)
	log = log.With("node", c.Name)
	b, err := newBase(ctx, c.Node, cluster.Member{Role: cluster.Scheduler}, reg, version, log)
	if err != nil {
		return err
	}
	// What clients send lies in their streams' windows, then in the frontend's
	// part, then in the store's: one budget for these could be held by calls that
	// wait for it.
	eighth := int64(c.StreamBudget) / 8
	incoming, answers, inStore := rpc.NewBudget(eighth), rpc.NewBudget(2*eighth), 2*eighth
	uploads := 3 * eighth / int64(c.StreamWindow)
	store := replica.New(replica.Options{
		Peers: b.peers, Placement: b.placement, R: c.Replicas, W: c.Acks(), Settled: b.placement.Settled, Budget: inStore, Log: log, Registerer: reg,
	})
	memory := actioncache.NewMemory(int64(c.ActionCacheSize))
	cache := actioncache.New(actioncache.Options{
		Self: b.members.Self(), Members: b.members, Placement: b.placement, Peers: b.peers, Memory: memory,
		Replicas: c.ActionCacheReplicas, Log: log, Registerer: reg,
	})
	cache.Register(b.mux)
	tasks := scheduler.New(scheduler.Options{
		Self: b.members.Self(), Members: b.members, Peers: b.peers, MaxQueued: c.MaxQueue,
		Requests: c.RequestProperties, Resources: c.ResourceProperties, EmptyPools: emptyPools(c),
		Log: log, Registerer: reg,
	})
	tasks.Register(b.server)
	front := frontend.New(frontend.Options{
		Store: store, Uploads: frontend.UploadsOf(store), ActionCache: cache, Executor: tasks,
		Answers: answers, Incoming: incoming, MaxUploads: int(uploads), Owners: b.owners(), MaxTimeout: c.MaxTimeout, Log: log, Registerer: reg,
	})
	b.status.Fill = func(st *pb.NodeStatus) {
		q := tasks.Status()
		st.Queued, st.Executing, st.OldestQueuedMs = uint32(q.Queued+q.Placed), uint32(q.Executing), q.Oldest.Milliseconds()
		m := memory.Stats()
		st.ActionCacheEntries, st.ActionCacheBytes = int64(m.Entries), m.Bytes
	}
	public := grpc.NewServer(append(rpc.PublicServerOptions(int32(c.StreamWindow)), front.ServerOptions()...)...)
	front.Register(public)
	admin.New(admin.Options{
		Self: b.members.Self().ID, Version: version, Replicas: c.Replicas, Members: b.members, Peers: b.peers, Local: b.status, Log: log,
	}).Register(public)

	ready := func() error {
		if len(b.placement.Table().Disks()) == 0 {
			return errors.New("no worker has been seen yet")
		}
		if !b.placement.Settled() {
			return errors.New("others may have workers that have not been seen yet")
		}
		return nil
	}
	log.Info("serving", "public", publicLis.Addr().String(), "cluster", b.clusterLis.Addr().String(), "ops", b.opsLis.Addr().String())
	err = b.run(ctx,
		[]part{b.announce(ready, front.SetServing), b.serveOps(ready), serve(public, publicLis, "public")},
		tasks.Run, // its streams to other nodes end here
		cache.Run, // what was put is on its way to the journals until here
		b.serveCluster,
		store.Run,
	)
	if err != nil {
		return fmt.Errorf("scheduler %s: %w", c.Name, err)
	}
	return nil
}

// owners tells which workers' disks own a partition, by the workers' names.
func (b *base) owners() func(partition uint16) []string {
	type named struct {
		table *placement.Table
		names map[cluster.DiskID]string
	}
	var last atomic.Pointer[named]
	return func(p uint16) (names []string) {
		n, table := last.Load(), b.placement.Table()
		if n == nil || n.table != table {
			n = &named{table, make(map[cluster.DiskID]string)}
			for _, m := range b.members.View().Role(cluster.Worker) {
				n.names[m.Disk] = m.Name
			}
			last.Store(n)
		}
		for _, d := range table.Owners(p) {
			if name := n.names[d.ID]; name != "" {
				names = append(names, name)
			}
		}
		return names
	}
}
