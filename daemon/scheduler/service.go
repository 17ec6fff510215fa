// Package scheduler decides which worker runs which action. Each action that is
// wanted is one task at one scheduler, wherever it is asked for; workers are
// connected to all schedulers. DESIGN.md says how they agree.
//
// The decisions are made by pure cores (packages home, tasks, queue and match);
// this package is the shell around them: streams, clocks and waiting callers.
package scheduler

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/remex-build/terraform-provider-remex/daemon/cluster"
	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/home"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/match"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/tasks"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/wire"
)

// What callers see.
type (
	// Request is an action to be executed.
	Request = wire.Request
	// Property is one property of a platform.
	Property = match.Property
	// Update is the state of an operation.
	Update = wire.Update
	// Stage is how far an operation has come.
	Stage = wire.Stage
	// Status is what a scheduler has to do.
	Status = tasks.Status
	// PoolStatus is the workers of one pool.
	PoolStatus = tasks.Pool
)

// The stages of an operation.
const (
	Queued    = wire.Queued
	Executing = wire.Executing
	Completed = wire.Completed
)

// The errors of calls. What becomes of an operation is in its last Update.
var (
	// ErrNotFound: no scheduler knows of the operation, nor of its result.
	ErrNotFound = &wire.Error{Status: codes.NotFound, Text: "there is no such operation"}
	// ErrStopping: this scheduler shuts down; another one will do.
	ErrStopping = &wire.Error{Status: codes.Unavailable, Text: "the scheduler is shutting down"}
)

const (
	tickEvery   = 100 * time.Millisecond
	restEvery   = 250 * time.Millisecond // a tick, while nothing waits for it
	stoppedFor  = time.Second            // a tick that late means that we did not run
	repeatEvery = 25 * time.Second
	// Defaults of the bounds in Options.
	defaultQueued   = 50_000
	defaultFinished = 64 << 20
)

// Members is the view of the cluster.
type Members interface {
	View() *cluster.View
	Changed() <-chan struct{}
}

// Conns dials other nodes.
type Conns interface {
	Conn(addr string) (*grpc.ClientConn, error)
}

// Options say what a Service works with.
type Options struct {
	Self    cluster.Member
	Members Members
	Peers   Conns
	// MaxQueued is how many actions may wait here; 0 means 50,000. Raise it
	// for builds that are wider than that: each takes 2 KiB and its own bytes.
	MaxQueued int
	// Requests are further platform properties that exclude no worker, and
	// Resources those of which it must have at least so much.
	Requests, Resources []string
	// EmptyPools are pools that may have no worker.
	EmptyPools []*match.Profile
	Log        *slog.Logger
	Registerer prometheus.Registerer // may be nil
}

// Service is one scheduler. Its methods are safe for concurrent use.
type Service struct {
	pb.UnimplementedWorkServer

	o       Options
	log     *slog.Logger
	metrics *metrics
	stopped chan struct{}  // closed when Run ends
	running sync.WaitGroup // of goroutines that Run waits for

	mu       sync.Mutex // guards everything below; never held across I/O
	core     *home.Core
	closed   bool
	calls    map[uint64]*mailbox
	lastCall uint64
	workers  map[uint64]*stream[wire.ToWorker] // by session
	callers  map[uint64]*stream[wire.ToCaller]
	owners   map[uint64]*stream[wire.ToOwner]
	session  uint64
	resting  bool // Run's next tick is a late one

	busy chan struct{} // tells Run that it shouldn't be
}

// stream is the writing half of one that is open.
type stream[T any] struct {
	out *wire.Outbox[T]
	end context.CancelFunc
}

// put ends a stream that is too far behind.
func (s *stream[T]) put(v T) {
	if s != nil && !s.out.Put(v) {
		s.end()
	}
}

// New is a Service that serves once it is registered, and finds its peers and
// keeps its deadlines while it runs.
func New(o Options) *Service {
	rules := match.DefaultRules()
	rules.Requests = append(rules.Requests, o.Requests...)
	rules.Resources = append(rules.Resources, o.Resources...)
	if o.MaxQueued == 0 {
		o.MaxQueued = defaultQueued
	}
	s := &Service{
		o: o, log: o.Log.With("part", "scheduler"), stopped: make(chan struct{}),
		core: home.New(time.Now(), tasks.Config{
			Self: o.Self.ID, Rules: rules, MaxQueued: o.MaxQueued, FinishedBytes: defaultFinished, Declared: o.EmptyPools,
		}),
		calls:   make(map[uint64]*mailbox),
		workers: make(map[uint64]*stream[wire.ToWorker]),
		callers: make(map[uint64]*stream[wire.ToCaller]),
		owners:  make(map[uint64]*stream[wire.ToOwner]),
		busy:    make(chan struct{}, 1),
	}
	s.metrics = newMetrics(o.Registerer, s.Status)
	return s
}

// Register serves workers and other schedulers.
func (s *Service) Register(r grpc.ServiceRegistrar) { pb.RegisterWorkServer(r, s) }

// step makes the core take one event, and hands out what comes of it: to
// queues, so that nothing waits.
func (s *Service) step(event func(c *home.Core, now time.Time)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stepLocked(event)
}

func (s *Service) stepLocked(event func(c *home.Core, now time.Time)) {
	event(s.core, time.Now())
	for _, e := range s.core.Take() {
		switch e := e.(type) {
		case tasks.Send:
			s.workers[e.Session].put(e.Msg)
			s.metrics.sent(e.Msg)
		case home.SendOwner:
			s.owners[e.Session].put(e.Msg)
		case home.SendCaller:
			s.callers[e.Session].put(e.Msg)
		case home.Reply:
			if m := s.calls[e.Call]; m != nil {
				m.put(e.Update, e.Gone)
			}
		case tasks.Close:
			if e.Left {
				s.log.Info("worker has left", "worker", e.Worker)
			} else {
				s.log.Warn("gave a silent worker up", "worker", e.Worker)
				s.metrics.lost.Inc()
			}
			if w := s.workers[e.Session]; w != nil {
				w.end()
			}
		case home.Rejoin:
			s.log.Warn("another scheduler has taken over; coming back under a new term")
			s.endLocked()
		}
	}
	if s.resting && s.core.Busy() {
		s.resting = false
		select {
		case s.busy <- struct{}{}:
		default:
		}
	}
}

// endLocked ends all streams.
func (s *Service) endLocked() {
	for _, w := range s.workers {
		w.end()
	}
	for _, p := range s.callers {
		p.end()
	}
	for _, p := range s.owners {
		p.end()
	}
}

// Status describes what this scheduler owns and which workers it hears.
func (s *Service) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.core.Status(time.Now())
}

// Run finds peers and keeps deadlines until ctx ends. Then it ends all streams
// and waits for what it started; calls that wait get ErrStopping.
func (s *Service) Run(ctx context.Context) error {
	s.running.Go(func() { s.follows(ctx) })
	timer := time.NewTimer(tickEvery)
	defer timer.Stop()
	last := time.Now()
	for ctx.Err() == nil {
		select {
		case <-timer.C:
			timer.Reset(s.tick(&last))
		case <-s.busy:
			timer.Reset(tickEvery)
		case <-ctx.Done():
		}
	}
	s.mu.Lock()
	s.closed = true
	s.endLocked()
	s.mu.Unlock()
	close(s.stopped)
	s.running.Wait()
	return nil
}

// tick lets time pass since last, and returns after how long it is to be called
// again.
func (s *Service) tick(last *time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stepLocked(func(c *home.Core, now time.Time) {
		if now.Sub(*last) > stoppedFor {
			s.log.Warn("did not run for a while", "dur", now.Sub(*last))
			c.Awake(now)
		}
		*last = now
		c.Tick(now)
	})
	if s.resting = !s.core.Busy(); s.resting {
		return restEvery
	}
	return tickEvery
}

// refused reports whether err says that nothing listens at an address.
func refused(err error) bool { return err != nil && errors.Is(err, errRefused) }
