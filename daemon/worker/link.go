// Package worker connects a worker to the schedulers: it is told what to run,
// has it run by Actions, and says what became of it.
//
// The link dials every scheduler in view and goes on dialling for as long as it
// runs. What runs goes on running without a connection, and results are kept
// until a scheduler has taken note of them. The decisions are made by a pure
// core (package slots); this package is the shell around it.
package worker

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
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/wire"
	"github.com/remex-build/terraform-provider-remex/daemon/worker/slots"
)

// Task is what a worker is given to run.
type Task = wire.Task

// Actions runs tasks. Its methods are safe for concurrent use.
type Actions interface {
	// Prefetch fetches the inputs of a task that will be run next. Whatever
	// goes wrong shows in Run. It ends when ctx does.
	Prefetch(ctx context.Context, t *Task)
	// Run executes t. It calls started when the inputs are there and the
	// process starts, and free as soon as the executor may run the next task;
	// each at most once. It returns a serialized ExecuteResponse, or an error
	// when the trouble is the worker's: then the task is run elsewhere. When
	// ctx ends, the process is killed and Run returns.
	Run(ctx context.Context, executor int, t *Task, started, free func()) (response []byte, err error)
}

const (
	// endWithin is what killed actions have to end when the worker stops, and
	// flushWithin the last frames to be sent.
	endWithin   = 10 * time.Second
	flushWithin = 200 * time.Millisecond
	// finishedBytes bounds the results that are kept.
	finishedBytes = 32 << 20
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

// Options say what a Link works with.
type Options struct {
	Self       cluster.Member
	Members    Members
	Peers      Conns
	Pool       string
	Properties map[string][]string // what the pool's platform properties match
	Executors  int
	Actions    Actions
	Log        *slog.Logger
	Registerer prometheus.Registerer // may be nil
}

// Link is a worker's connection to all schedulers.
type Link struct {
	o       Options
	log     *slog.Logger
	metrics *metrics
	streams sync.WaitGroup
	actions sync.WaitGroup

	mu       sync.Mutex // guards everything below; never held across I/O
	core     *slots.Core
	session  uint64
	open     map[uint64]*stream // by session
	attempts map[wire.Ref]*attempt
	base     context.Context //nolint:containedctx // Run's, for what effects start
	due      time.Time       // of the next tick, as Run knows it

	sooner chan struct{} // tells Run that due is earlier than it was
}

// stream is the writing half of one that is open.
type stream struct {
	out *wire.Outbox[wire.FromWorker]
	end context.CancelFunc
}

// attempt is one that runs, or whose inputs are fetched.
type attempt struct {
	ctx    context.Context //nolint:containedctx // spans Prefetch and Run
	cancel context.CancelFunc
	// running is set, under the Link's mutex, once Run began.
	running bool
}

// New is a Link that has yet to Run.
func New(o Options) *Link {
	l := &Link{
		o: o, log: o.Log.With("part", "worker"),
		core: slots.New(slots.Config{
			Self: o.Self.ID, Name: o.Self.Name, Executors: o.Executors, FinishedBytes: finishedBytes,
		}),
		open:     make(map[uint64]*stream),
		attempts: make(map[wire.Ref]*attempt),
		base:     context.Background(),
		sooner:   make(chan struct{}, 1),
	}
	l.metrics = newMetrics(o.Registerer, l.Running)
	return l
}

// Running is how many executors run an action.
func (l *Link) Running() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.core.Running()
}

// step makes the core take one event, and hands out what comes of it: to queues
// and new goroutines, so that nothing waits.
func (l *Link) step(event func(c *slots.Core, now time.Time)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stepLocked(event)
}

func (l *Link) stepLocked(event func(c *slots.Core, now time.Time)) {
	event(l.core, time.Now())
	for _, e := range l.core.Take() {
		switch e := e.(type) {
		case slots.Send:
			if s := l.open[e.Session]; s != nil && !s.out.Put(e.Msg) {
				s.end()
			}
		case slots.Prefetch:
			a := l.attemptLocked(e.Task.Ref())
			l.actions.Go(func() { l.o.Actions.Prefetch(a.ctx, e.Task) })
		case slots.Run:
			a := l.attemptLocked(e.Task.Ref())
			a.running = true
			l.actions.Go(func() { l.run(a, e.Executor, e.Task) })
		case slots.Stop:
			if a := l.attempts[e.Ref]; a != nil {
				a.cancel()
				if !a.running {
					delete(l.attempts, e.Ref)
				}
			}
		}
	}
	if next := l.core.Next(); next.Before(l.due) {
		l.due = next
		select {
		case l.sooner <- struct{}{}:
		default:
		}
	}
}

// tick lets time pass, and returns how long to wait until it is to be called
// again.
func (l *Link) tick() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !time.Now().Before(l.due) {
		l.stepLocked(func(c *slots.Core, now time.Time) { c.Tick(now) })
		l.due = l.core.Next()
	}
	return time.Until(l.due)
}

func (l *Link) attemptLocked(ref wire.Ref) *attempt {
	a := l.attempts[ref]
	if a == nil {
		a = &attempt{}
		a.ctx, a.cancel = context.WithCancel(l.base)
		l.attempts[ref] = a
	}
	return a
}

// run sees one attempt through.
func (l *Link) run(a *attempt, executor int, t *Task) {
	defer a.cancel()
	begun := time.Now()
	ref := t.Ref()
	started := func() { l.step(func(c *slots.Core, now time.Time) { c.Started(now, ref) }) }
	free := func() { l.step(func(c *slots.Core, now time.Time) { c.Freed(now, ref) }) }
	response, err := l.o.Actions.Run(a.ctx, executor, t, started, free)
	code, text := outcome(a.ctx, err)
	l.metrics.ended(code)
	l.log.Debug("attempt ended", "action", t.Action, "dur", time.Since(begun), "err", err)
	l.step(func(c *slots.Core, now time.Time) {
		delete(l.attempts, ref)
		c.Ended(now, ref, response, code, text)
	})
}

// outcome is the code and text by which the scheduler learns of err.
func outcome(ctx context.Context, err error) (codes.Code, string) {
	if err == nil {
		return codes.OK, ""
	}
	var c interface{ Code() codes.Code }
	switch {
	case ctx.Err() != nil:
		return codes.Canceled, "the attempt was ended: " + err.Error()
	case errors.As(err, &c) && c.Code() != codes.OK:
		return c.Code(), err.Error()
	}
	return codes.Internal, err.Error()
}

// Run serves schedulers until ctx ends. Then it kills what runs, says so, and
// waits for what it started.
func (l *Link) Run(ctx context.Context) error {
	base, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	l.mu.Lock()
	l.base = base
	l.mu.Unlock()
	l.streams.Go(func() { l.follow(base, ctx.Done()) })
	timer := time.NewTimer(l.tick())
	defer timer.Stop()
	for ctx.Err() == nil {
		select {
		case <-timer.C:
		case <-l.sooner:
		case <-ctx.Done():
		}
		timer.Reset(l.tick())
	}
	// Killed actions first, then Bye: a scheduler starts them elsewhere at once.
	l.step(func(c *slots.Core, _ time.Time) { c.Close() })
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		l.actions.Wait()
	}()
	late := time.NewTimer(endWithin)
	defer late.Stop()
	select {
	case <-ended:
	case <-late.C:
		l.log.Warn("actions did not end when they were killed")
	}
	l.step(func(c *slots.Core, _ time.Time) { c.Bye() })
	l.flush()
	stop()
	l.streams.Wait()
	<-ended
	return nil
}

// flush waits until the last frames are sent, or for a moment.
func (l *Link) flush() {
	until := time.NewTimer(flushWithin)
	defer until.Stop()
	l.mu.Lock()
	open := make([]*stream, 0, len(l.open))
	for _, s := range l.open {
		open = append(open, s)
	}
	l.mu.Unlock()
	for _, s := range open {
		select {
		case <-s.out.Sent():
		case <-until.C:
			return
		}
	}
}
