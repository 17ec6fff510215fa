package dev

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// maxConns bounds the clients' connections; more wait in the listener's
	// backlog.
	maxConns    = 4096
	dialTimeout = 500 * time.Millisecond
	// patience is how long a client's connection waits for a backend.
	patience = 15 * time.Second
	// openAfter is how long it waits for a ready one. Then one that is not
	// will do, as with the clouds' balancers: it can say what is wrong.
	openAfter = 5 * time.Second
	// silence is how long a backend may leave its health unanswered before
	// its clients are sent elsewhere. A machine under load is slow to answer.
	silence = 10 * time.Second
)

// backend is one scheduler as the balancer sees it. Its fields are guarded by
// the balancer's mutex.
type backend struct {
	name   string
	public string // where connections go
	ops    string // whose /readyz decides
	up     func() // told when it becomes ready

	health health
	heard  time.Time // of the last answer, good or bad
	conns  map[*pipe]struct{}
}

// A balancer spreads TCP connections over the backends that are ready, as a
// cloud's network load balancer would. A backend that is not ready gets no new
// connections and keeps those it has (it may be draining); the connections of
// one that is gone are reset, so that clients notice at once.
type balancer struct {
	lis net.Listener
	log *slog.Logger

	mu       sync.Mutex // guards everything below; never held across I/O
	backends []*backend
	next     int           // where the search among equals begins
	changed  chan struct{} // closed and replaced when a backend becomes ready
}

func newBalancer(lis net.Listener, backends []*backend, log *slog.Logger) *balancer {
	for _, b := range backends {
		b.conns = map[*pipe]struct{}{}
		b.health, b.heard = healthGone, time.Now()
	}
	return &balancer{lis: lis, log: log.With("part", "balancer"), backends: backends, changed: make(chan struct{})}
}

// Run serves until ctx ends; then all connections are closed.
func (l *balancer) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, b := range l.backends {
		g.Go(func() error {
			watch(ctx, b.ops, func(h health) { l.judge(b, h) })
			return nil
		})
	}
	g.Go(func() error {
		<-ctx.Done()
		return l.lis.Close()
	})
	g.Go(func() error { return l.accept(ctx) })
	return g.Wait()
}

func (l *balancer) accept(ctx context.Context) error {
	var conns errgroup.Group
	conns.SetLimit(maxConns)
	defer func() { _ = conns.Wait() }()
	for {
		c, err := l.lis.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = c.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil: // out of file descriptors, most likely
			l.log.Warn("connection not accepted", "err", err)
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		}
		conns.Go(func() error {
			l.serve(ctx, c.(*net.TCPConn))
			return nil
		})
	}
}

// judge takes in how a backend answered for its health.
func (l *balancer) judge(b *backend, h health) {
	l.mu.Lock()
	was := b.health
	b.health = h
	if h == healthReady || h == healthUnready {
		b.heard = time.Now()
	}
	gone := h == healthGone || time.Since(b.heard) > silence
	var cut []*pipe
	if gone {
		for p := range b.conns {
			cut = append(cut, p)
		}
	}
	if h == healthReady && was != h {
		close(l.changed)
		l.changed = make(chan struct{})
	}
	l.mu.Unlock()
	if h == healthReady && was != h {
		b.up()
	}
	if was != h {
		l.log.Info("scheduler's readiness changed", "node", b.name, "health", h.String(), "reset", len(cut))
	}
	for _, p := range cut {
		p.reset()
	}
}

// pick chooses the ready backend with the fewest connections. When none is
// ready, one that is slow to answer will do: on a machine under load they may
// all be. One that says that it wants no traffic will if it is open to all; one
// that is gone never does.
func (l *balancer) pick(open bool) (best *backend, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, want := range []health{healthReady, healthSilent, healthUnready} {
		if want == healthUnready && !open {
			break
		}
		for i := range l.backends {
			b := l.backends[(l.next+i)%len(l.backends)]
			if b.health == want && (best == nil || len(b.conns) < len(best.conns)) {
				best = b
			}
		}
		if best != nil {
			break
		}
	}
	l.next++
	return best, l.changed
}

// dial finds a backend for a connection that has come.
func (l *balancer) dial(ctx context.Context) (*backend, *net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	dialer := net.Dialer{Timeout: dialTimeout}
	late := time.NewTimer(openAfter)
	defer late.Stop()
	open := false
	for {
		b, changed := l.pick(open)
		if b == nil {
			select {
			case <-changed:
				continue
			case <-late.C:
				open = true
				continue
			case <-ctx.Done():
				return nil, nil, fmt.Errorf("no scheduler is ready: %w", ctx.Err())
			}
		}
		c, err := dialer.DialContext(ctx, "tcp", b.public)
		if err == nil {
			return b, c.(*net.TCPConn), nil
		}
		if ctx.Err() != nil {
			return nil, nil, err
		}
		l.log.Debug("scheduler does not accept a connection", "node", b.name, "err", err)
		l.mu.Lock()
		b.health = healthGone // until its health is heard again
		l.mu.Unlock()
	}
}

func (l *balancer) serve(ctx context.Context, client *net.TCPConn) {
	b, server, err := l.dial(ctx)
	if err != nil {
		l.log.Warn("client turned away", "client", client.RemoteAddr().String(), "err", err)
		reset(client)
		return
	}
	p := &pipe{client: client, server: server}
	l.mu.Lock()
	b.conns[p] = struct{}{}
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		delete(b.conns, p)
		l.mu.Unlock()
	}()
	stop := context.AfterFunc(ctx, p.reset)
	defer stop()
	p.run()
}

// pipe is one client's connection and the one to its backend.
type pipe struct{ client, server *net.TCPConn }

// run copies both ways until both sides have closed. The kernel moves the
// bytes (splice): none of them pass through this process's memory.
func (p *pipe) run() {
	var g errgroup.Group
	g.Go(func() error { return p.copy(p.server, p.client) })
	g.Go(func() error { return p.copy(p.client, p.server) })
	_ = g.Wait()
	_ = p.client.Close()
	_ = p.server.Close()
}

// copy passes on one direction and its end. A broken one breaks the other: half
// a connection is of no use to anyone, and the client must learn of it.
func (p *pipe) copy(dst, src *net.TCPConn) error {
	_, err := io.Copy(dst, src)
	if err == nil {
		err = dst.CloseWrite()
	}
	if err != nil {
		p.reset()
	}
	return err
}

func (p *pipe) reset() {
	reset(p.client)
	reset(p.server)
}

// reset closes c so that its peer sees an error instead of an end.
func reset(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}
