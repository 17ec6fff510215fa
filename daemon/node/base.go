// Package node wires a role together from the daemon's parts: it knows all of
// them, and nothing below it knows which role it serves.
//
// What stands on something else stops before it. A node that is told to stop
// first says that it wants no traffic, then lets its servers finish what is
// under way, then leaves the cluster, and closes its disk last: whatever was
// acknowledged until then has been handed to it.
package node

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/remex-build/terraform-provider-remex/daemon/admin"
	"github.com/remex-build/terraform-provider-remex/daemon/cluster"
	"github.com/remex-build/terraform-provider-remex/daemon/cluster/placement"
	"github.com/remex-build/terraform-provider-remex/daemon/config"
	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
	"github.com/remex-build/terraform-provider-remex/daemon/rpc"
)

// graceful is how long servers have to finish what is under way. Executions
// are not waited for: their clients find them again through other schedulers.
const graceful = 3 * time.Second

// announceEvery is how often a node looks whether it is ready.
const announceEvery = 250 * time.Millisecond

// base is what both roles stand on.
type base struct {
	log *slog.Logger
	reg *prometheus.Registry

	clusterLis, opsLis net.Listener
	members            *cluster.Members
	peers              *rpc.Peers
	placement          *placement.Placement
	mux                *rpc.Mux
	server             *grpc.Server // the cluster port's
	status             *admin.Node
}

// newBase listens and joins, so that what it tells the other nodes of this one
// is true from the first moment. member carries what the role adds.
func newBase(ctx context.Context, c config.Node, member cluster.Member, reg *prometheus.Registry, version string, log *slog.Logger) (_ *base, err error) {
	b := &base{log: log, reg: reg}
	defer func() {
		if err != nil {
			b.close()
		}
	}()
	if b.clusterLis, err = listen(ctx, "cluster", c.ListenCluster); err != nil {
		return nil, err
	}
	if b.opsLis, err = listen(ctx, "ops", c.ListenOps); err != nil {
		return nil, err
	}
	boot := time.Now()
	member.ID = fmt.Sprintf("%s-%s", c.Name, strings.ToLower(rand.Text()[:8]))
	member.Name, member.Boot, member.Zone = c.Name, boot.UnixNano(), c.Zone
	member.Addr, member.Ops = b.clusterLis.Addr().String(), b.opsLis.Addr().String()
	member.State, member.Version = cluster.Starting, 1
	b.peers = rpc.NewPeers(rpc.PeersOptions{Self: member.ID, Log: b.log, Registerer: b.reg})
	b.mux = rpc.NewMux(b.log)
	b.server = grpc.NewServer(rpc.ClusterServerOptions()...)
	b.mux.Register(b.server)
	b.members, err = cluster.Start(cluster.Options{
		Self: member, BindAddr: c.ListenGossip, Seeds: c.Seeds, Label: c.ClusterName, Log: b.log, Registerer: b.reg,
	})
	if err != nil {
		return nil, fmt.Errorf("join the cluster: %w", err)
	}
	b.placement = placement.New(b.members, c.Replicas, c.DeadAfter, b.log)
	b.status = &admin.Node{Self: b.members.Self, Version: version}
	rpc.Handle(b.mux, pb.Method_METHOD_NODE_STATUS, b.status.Answer)
	return b, nil
}

// close lets go of what newBase took hold of.
func (b *base) close() {
	for _, lis := range []net.Listener{b.clusterLis, b.opsLis} {
		if lis != nil {
			lis.Close()
		}
	}
	if b.peers != nil {
		if err := b.peers.Close(); err != nil {
			b.log.Warn("connections to other nodes did not close", "err", err)
		}
	}
}

func listen(ctx context.Context, what, addr string) (net.Listener, error) {
	lis, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen on the %s port: %w", what, err)
	}
	return lis, nil
}

// A part runs until its context ends.
type part = func(ctx context.Context) error

// run runs a node until ctx ends or a part fails. The parts in last, in their
// order, stop one after another once everything in first has; membership goes
// last of all, so that the others learn of the end when it has come.
func (b *base) run(ctx context.Context, first []part, last ...part) error {
	defer b.close()
	layers := append([][]part{first}, make([][]part, 0, len(last)+1)...)
	for _, p := range last {
		layers = append(layers, []part{p})
	}
	layers = append(layers, []part{b.members.Run, b.placement.Run})
	return runLayers(ctx, layers)
}

// runLayers runs all parts at once, and ends them layer by layer from the
// first: each layer's context ends when all parts of the layer before have
// returned. A part that fails, or returns before it was told to, ends them all.
func runLayers(ctx context.Context, layers [][]part) error {
	failed, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	above := failed.Done() // closed when the layer above has ended
	var all errgroup.Group
	for _, layer := range layers {
		lctx, end := context.WithCancel(context.WithoutCancel(ctx))
		ended := make(chan struct{})
		told := above
		all.Go(func() error {
			<-told
			end()
			return nil
		})
		all.Go(func() error {
			defer close(ended)
			var parts errgroup.Group
			for _, run := range layer {
				parts.Go(func() error {
					err := run(lctx)
					if lctx.Err() != nil { // as it was told to
						if errors.Is(err, context.Canceled) {
							return nil
						}
						return err
					}
					if err == nil {
						err = errors.New("a part of the node has ended by itself")
					}
					fail(err)
					return err
				})
			}
			err := parts.Wait()
			<-told // what failed early must not end what others above stand on
			return err
		})
		above = ended
	}
	return all.Wait()
}

// serve serves gRPC until ctx ends, then lets calls finish for a while.
func serve(s *grpc.Server, lis net.Listener, what string) part {
	return func(ctx context.Context) error {
		stopped := make(chan struct{})
		stop := context.AfterFunc(ctx, func() {
			defer close(stopped)
			kill := time.AfterFunc(graceful, s.Stop)
			defer kill.Stop()
			s.GracefulStop()
		})
		if err := s.Serve(lis); err != nil && stop() {
			return fmt.Errorf("%s port: %w", what, err)
		}
		<-stopped
		return nil
	}
}

// serveCluster serves the cluster port. Streams between nodes have no end of
// their own: those who opened them have ended theirs by the time it stops.
func (b *base) serveCluster(ctx context.Context) error {
	stop := context.AfterFunc(ctx, b.mux.Close)
	defer stop()
	return serve(b.server, b.clusterLis, "cluster")(ctx)
}

// inPlace is ready, unless another node has taken this one's place.
func (b *base) inPlace(ready func() error) func() error {
	return func() error {
		if by, yes := b.members.View().Replaced(b.members.Self()); yes {
			return fmt.Errorf("the %s at %s has the same name, %s, or the same disk, and started later: give each node a name (--name) and a directory of its own", by.Role, by.Addr, by.Name)
		}
		return ready()
	}
}

// serveOps runs the ops port.
func (b *base) serveOps(ready func() error) part {
	ready = b.inPlace(ready)
	return func(ctx context.Context) error { return serveOps(ctx, b.opsLis, b.reg, ready, b.log) }
}

// announce tells the cluster, and calls tell, when the node becomes ready and
// when it no longer is.
func (b *base) announce(ready func() error, tell func(bool)) part {
	ready = b.inPlace(ready)
	return func(ctx context.Context) error {
		tick := time.NewTicker(announceEvery)
		defer tick.Stop()
		was := errors.New("starting")
		for {
			is := ready()
			switch {
			case is == nil && was != nil:
				b.log.Info("ready", "address", b.clusterLis.Addr().String())
				b.members.SetState(cluster.Ready)
				tell(true)
			case is != nil && was == nil:
				b.log.Warn("no longer ready", "err", is)
				tell(false)
			}
			was = is
			select {
			case <-tick.C:
			case <-ctx.Done():
				tell(false)
				return nil
			}
		}
	}
}
