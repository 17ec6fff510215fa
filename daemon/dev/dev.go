// Package dev owns a whole cluster on one machine: separate processes on
// loopback addresses, kept running, behind a TCP balancer.
//
// Each node has a 127.a.b.c address of its own with the standard ports, so that
// clusters run side by side and a node is cut off as a host would be. Data stay
// in the directory between runs; processes do not outlive the supervisor,
// however it ends. It is no way to run a cluster on several machines.
package dev

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/remex-build/terraform-provider-remex/daemon/config"
)

// Options say what cluster to run.
type Options struct {
	Exe    string // the remex binary
	Dir    string // of data and logs
	Listen string // the balancer's host:port; port 0 picks one

	Schedulers int
	Workers    int
	Executors  int // per worker
	Replicas   int
	DiskSize   config.ByteSize // per worker

	Restart        bool // start crashed nodes again
	SchedulerFlags []string
	WorkerFlags    []string

	Out io.Writer // where to say that the cluster is ready
	Log *slog.Logger
}

// Validate reports everything that is wrong with o, by the names of flags.
func (o Options) Validate() error {
	var errs []error
	bound := func(flag string, n, lo, hi int) {
		if n < lo || n > hi {
			errs = append(errs, fmt.Errorf("--%s: %d is not between %d and %d", flag, n, lo, hi))
		}
	}
	bound("schedulers", o.Schedulers, 1, maxSchedulers)
	bound("workers", o.Workers, 1, maxWorkers)
	bound("executors", o.Executors, 0, 4096)
	bound("replicas", o.Replicas, 1, 9)
	if o.Replicas <= 9 && o.Workers > 0 && o.Replicas > o.Workers {
		errs = append(errs, fmt.Errorf("--replicas: %d copies need as many workers, and there are %d", o.Replicas, o.Workers))
	}
	if err := listenable(o.Listen); err != nil {
		errs = append(errs, fmt.Errorf("--listen: %w", err))
	}
	if o.Dir == "" {
		errs = append(errs, errors.New("--dir: must not be empty"))
	}
	return errors.Join(errs...)
}

// listenable refuses what would offer an unprotected cluster to a network.
func listenable(addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("%q is no host:port", addr)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("%q has no valid port", addr)
	}
	if ip := net.ParseIP(host); host != "localhost" && !ip.IsLoopback() {
		return fmt.Errorf("%s is not a loopback address: TLS is not available yet, and without it everyone on the network could run commands here", addr)
	}
	return nil
}

// Run runs the cluster until ctx ends. When it returns, no process of the
// cluster is left.
func Run(ctx context.Context, o Options) (err error) {
	if err := o.Validate(); err != nil {
		return err
	}
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return err
	}
	unlock, err := lockDir(o.Dir)
	if err != nil {
		return err
	}
	defer unlock()
	lis, err := (&net.ListenConfig{}).Listen(ctx, "tcp", o.Listen)
	if err != nil {
		return fmt.Errorf("listen for clients on %s: %w (another --listen, or port 0, avoids it)", o.Listen, err)
	}
	defer lis.Close()
	network, err := claimNetwork(ctx)
	if err != nil {
		return err
	}
	defer network.release()
	nursery, err := newNursery()
	if err != nil {
		return err
	}
	defer nursery.close()

	c := &cluster{o: o, file: newClusterFile(o.Dir, "grpc://"+lis.Addr().String())}
	// One that a killed supervisor left would name processes that are gone.
	if err := c.file.remove(); err != nil {
		return err
	}
	if err := c.populate(network, nursery); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	return c.run(ctx, lis)
}

// cluster is all the nodes and what watches over them.
type cluster struct {
	o        Options
	file     *clusterFile
	children []*child
}

// populate plans the nodes; none is started yet.
func (c *cluster) populate(at *network, nursery *nursery) error {
	logs := filepath.Join(c.o.Dir, "logs")
	if err := os.MkdirAll(logs, 0o755); err != nil {
		return err
	}
	var seeds []string
	for i := range c.o.Schedulers {
		seeds = append(seeds, at.addr(roleScheduler, i, config.GossipPort))
	}
	// Schedulers that all died at once find the others by these.
	for i := range min(c.o.Workers, 3) {
		seeds = append(seeds, at.addr(roleWorker, i, config.GossipPort))
	}
	for _, role := range []string{roleScheduler, roleWorker} {
		count := map[string]int{roleScheduler: c.o.Schedulers, roleWorker: c.o.Workers}[role]
		for i := range count {
			n := at.node(role, i)
			if role == roleWorker {
				n.Dir = filepath.Join(c.o.Dir, n.Name)
			}
			n.Log = filepath.Join(logs, n.Name+".log")
			out, err := openLog(n.Log, maxLog)
			if err != nil {
				return errors.Join(err, c.close())
			}
			args := c.args(n, seeds)
			ch := &child{
				node: n, nursery: nursery, restart: c.o.Restart, log: c.o.Log, out: out, ready: make(chan struct{}),
				cmd: func() *exec.Cmd {
					cmd := exec.Command(c.o.Exe, args...) //nolint:noctx // stop ends it politely, which a context would not
					cmd.Env, cmd.Dir = cleanEnviron(), c.o.Dir
					return cmd
				},
			}
			ch.started = c.save
			c.children = append(c.children, ch)
		}
	}
	return nil
}

// args is a node's command line.
func (c *cluster) args(n node, seeds []string) []string {
	args := []string{
		n.Role, "--name=" + n.Name, "--cluster-name=dev",
		"--listen-cluster=" + n.Cluster, "--listen-gossip=" + n.Gossip, "--listen-ops=" + n.Ops,
		"--replicas=" + strconv.Itoa(c.o.Replicas),
	}
	var others []string
	for _, s := range seeds {
		if s != n.Gossip {
			others = append(others, s)
		}
	}
	if len(others) > 0 {
		args = append(args, "--seeds="+strings.Join(others, ","))
	}
	if n.Role == roleScheduler {
		return append(append(args, "--listen-public="+n.Public), c.o.SchedulerFlags...)
	}
	return append(append(args, "--dir="+n.Dir, "--executors="+strconv.Itoa(c.o.Executors), "--disk-size="+c.o.DiskSize.String()), c.o.WorkerFlags...)
}

// run starts everything and waits. Clients lose their connections first: the
// nodes then have nothing to wait for.
func (c *cluster) run(ctx context.Context, lis net.Listener) error {
	base, stopNodes := context.WithCancel(context.WithoutCancel(ctx))
	defer stopNodes()
	g, ctx := errgroup.WithContext(ctx)
	for _, ch := range c.children {
		g.Go(func() error { return ch.Run(base) })
	}
	g.Go(func() error {
		defer stopNodes()
		return newBalancer(lis, c.backends(), c.o.Log).Run(ctx)
	})
	g.Go(func() error { return c.announce(ctx) })
	return g.Wait()
}

func (c *cluster) backends() []*backend {
	var bs []*backend
	for _, ch := range c.children {
		if ch.Role == roleScheduler {
			bs = append(bs, &backend{name: ch.Name, public: ch.Public, ops: ch.Ops, up: ch.up})
		}
	}
	return bs
}

// slow is after how long a start is worth a word.
const slow = 15 * time.Second

// announce says, once, that every node is ready: schedulers by the balancer's
// word, which is what a client's next connection meets.
func (c *cluster) announce(ctx context.Context) error {
	g, gctx := errgroup.WithContext(ctx)
	for _, ch := range c.children {
		g.Go(func() error {
			c.await(gctx, ch)
			return nil
		})
	}
	_ = g.Wait()
	if ctx.Err() != nil {
		return nil
	}
	c.file.setReady()
	c.save()
	_, err := fmt.Fprint(c.o.Out, c.welcome())
	return err
}

func (c *cluster) await(ctx context.Context, ch *child) {
	hint := time.AfterFunc(slow, func() {
		c.o.Log.Warn("node is not ready yet", "node", ch.Name, "log", ch.Log)
	})
	defer hint.Stop()
	if ch.Role == roleScheduler {
		select {
		case <-ch.ready:
		case <-ctx.Done():
		}
		return
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	watch(ctx, ch.Ops, func(h health) {
		if h == healthReady {
			ch.up()
			stop()
		}
	})
}

// save writes the cluster's description anew.
func (c *cluster) save() {
	if err := c.file.write(c.children); err != nil {
		c.o.Log.Warn("cluster's description not written", "file", c.file.path, "err", err)
	}
}

func (c *cluster) close() error {
	errs := []error{c.file.remove()}
	for _, ch := range c.children {
		errs = append(errs, ch.out.Close())
	}
	return errors.Join(errs...)
}
