package worker

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/remex-build/terraform-provider-remex/daemon/cluster"
	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/wire"
	"github.com/remex-build/terraform-provider-remex/daemon/worker/slots"
)

const (
	redialFirst = 20 * time.Millisecond
	redialLast  = time.Second
	helloWithin = 3 * time.Second
	// deafAfter is when a scheduler that says nothing, not even that it lives,
	// is dialled anew.
	deafAfter = 10 * time.Second
)

var errNoHello = errors.New("no hello from that scheduler")

// follow keeps a stream to every scheduler in view until ctx ends. From done
// on it begins none.
func (l *Link) follow(ctx context.Context, done <-chan struct{}) {
	loops := make(map[string]*atomic.Bool) // whether it is in view
	for {
		changed := l.o.Members.Changed()
		in := make(map[string]bool)
		view := l.o.Members.View()
		schedulers := view.Role(cluster.Scheduler)
		if _, yes := view.Replaced(l.o.Self); yes {
			schedulers = nil // which would take us for the other
		}
		for _, m := range schedulers {
			in[m.ID] = true
			if loops[m.ID] == nil {
				inView := &atomic.Bool{}
				inView.Store(true)
				loops[m.ID] = inView
				l.streams.Go(func() { l.dial(ctx, done, m, inView) })
			}
		}
		for id, inView := range loops {
			if !in[id] {
				inView.Store(false)
				delete(loops, id)
			}
		}
		select {
		case <-changed:
		case <-done:
			return
		}
	}
}

// dial keeps a stream to one scheduler. When it breaks after the scheduler has
// left the view, that was the last.
func (l *Link) dial(ctx context.Context, done <-chan struct{}, m cluster.Member, inView *atomic.Bool) {
	pause := redialFirst
	for {
		begun := time.Now()
		err := l.serve(ctx, m)
		if ctx.Err() != nil || !inView.Load() {
			return
		}
		l.log.Debug("no stream to a scheduler", "peer", m.ID, "err", err)
		if time.Since(begun) > redialLast {
			pause = redialFirst
		}
		select {
		case <-time.After(pause):
		case <-done:
			return
		}
		if !inView.Load() {
			return
		}
		pause = min(2*pause, redialLast)
	}
}

// serve opens one stream and works it until it breaks.
func (l *Link) serve(ctx context.Context, m cluster.Member) error {
	conn, err := l.o.Peers.Conn(m.Addr)
	if err != nil {
		return fmt.Errorf("connect to %s: %w", m.ID, err)
	}
	ctx, end := context.WithCancel(ctx)
	defer end()
	late := time.AfterFunc(helloWithin, end)
	defer late.Stop()
	st, err := pb.NewWorkClient(conn).Worker(ctx)
	if err != nil {
		return fmt.Errorf("open stream: %w", err)
	}
	l.mu.Lock()
	held := l.core.Held()
	l.mu.Unlock()
	hello := wire.EncodeFromWorker(wire.WorkerHello{
		ID: l.o.Self.ID, Name: l.o.Self.Name, Pool: l.o.Pool, Properties: l.o.Properties,
		Executors: l.o.Executors, Attempts: held, To: m.ID,
	})
	if err := st.Send(&pb.FromWorker{Items: []*pb.WorkerItem{hello}}); err != nil {
		return fmt.Errorf("say hello: %w", err)
	}
	ms, err := receive(st)
	if err != nil {
		return fmt.Errorf("await hello: %w", err)
	}
	var theirs wire.SchedulerHello
	if len(ms) > 0 {
		theirs, _ = ms[0].(wire.SchedulerHello)
	}
	if theirs.ID != m.ID {
		return fmt.Errorf("%w: %q answers", errNoHello, theirs.ID)
	}
	late.Stop()
	out := wire.NewOutbox[wire.FromWorker]()
	l.mu.Lock()
	l.session++
	session := l.session
	l.open[session] = &stream{out: out, end: end}
	l.stepLocked(func(c *slots.Core, now time.Time) {
		c.SchedulerUp(now, m.ID, session, theirs.Term)
		for _, v := range ms[1:] {
			c.Received(now, m.ID, session, v)
		}
	})
	l.mu.Unlock()
	l.log.Debug("connected to a scheduler", "peer", m.ID)
	l.streams.Go(func() {
		defer end()
		l.read(st, m.ID, session, end)
	})
	err = l.write(ctx, st, out)
	l.step(func(c *slots.Core, now time.Time) {
		delete(l.open, session)
		c.SchedulerDown(now, m.ID, session)
	})
	return err
}

func receive(st pb.Work_WorkerClient) ([]wire.ToWorker, error) {
	frame, err := st.Recv()
	if err != nil {
		return nil, err
	}
	ms := make([]wire.ToWorker, 0, len(frame.GetItems()))
	for _, it := range frame.GetItems() {
		m, err := wire.DecodeToWorker(it)
		if err != nil {
			return nil, err
		}
		if m != nil {
			ms = append(ms, m)
		}
	}
	return ms, nil
}

func (l *Link) read(st pb.Work_WorkerClient, id string, session uint64, end context.CancelFunc) {
	deaf := time.AfterFunc(deafAfter, end)
	defer deaf.Stop()
	for {
		ms, err := receive(st)
		if err != nil {
			l.log.Debug("stream from a scheduler ended", "peer", id, "err", err)
			return
		}
		deaf.Reset(deafAfter)
		l.step(func(c *slots.Core, now time.Time) {
			for _, m := range ms {
				c.Received(now, id, session, m)
			}
		})
	}
}

// write sends what gathers in out until ctx ends or the stream breaks.
func (l *Link) write(ctx context.Context, st pb.Work_WorkerClient, out *wire.Outbox[wire.FromWorker]) error {
	var buf []wire.FromWorker
	for {
		buf = out.Take(buf[:0])
		if len(buf) == 0 {
			select {
			case <-out.Ready():
				continue
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		items := make([]*pb.WorkerItem, len(buf))
		for i, m := range buf {
			items[i] = wire.EncodeFromWorker(m)
		}
		clear(buf)
		if err := st.Send(&pb.FromWorker{Items: items}); err != nil {
			return fmt.Errorf("send: %w", err)
		}
	}
}
