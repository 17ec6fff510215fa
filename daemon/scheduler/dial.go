package scheduler

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/remex-build/terraform-provider-remex/daemon/cluster"
	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/home"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/wire"
)

const (
	redialFirst = 20 * time.Millisecond
	redialLast  = time.Second
	helloWithin = 3 * time.Second
)

// errOther: another process than the one we look for listens there now.
var errOther = errors.New("another scheduler answers there")

// follows keeps a stream to every other scheduler in view until ctx ends.
func (s *Service) follows(ctx context.Context) {
	type loop struct{ inView atomic.Bool }
	loops := make(map[string]*loop)
	for {
		changed := s.o.Members.Changed()
		view := s.o.Members.View()
		schedulers, workers := view.Role(cluster.Scheduler), view.Role(cluster.Worker)
		s.step(func(c *home.Core, now time.Time) { c.View(now, ids(schedulers), ids(workers)) })
		in := make(map[string]bool, len(schedulers))
		for _, m := range schedulers {
			if m.ID == s.o.Self.ID {
				continue
			}
			in[m.ID] = true
			if loops[m.ID] == nil {
				l := &loop{}
				l.inView.Store(true)
				loops[m.ID] = l
				s.running.Go(func() { s.dial(ctx, m, &l.inView) })
			}
		}
		for id, l := range loops {
			// A loop that has ended is begun anew should the node come
			// back, which only one of that very start can.
			if l.inView.Store(in[id]); !in[id] {
				delete(loops, id)
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

func ids(ms []cluster.Member) []string {
	out := make([]string, len(ms))
	for i, m := range ms {
		out[i] = m.ID
	}
	return out
}

// dial keeps a stream to one other scheduler, until it has left the view and
// can no longer be reached, or ctx ends.
func (s *Service) dial(ctx context.Context, m cluster.Member, inView *atomic.Bool) {
	pause := redialFirst
	for {
		begun := time.Now()
		err := s.link(ctx, m)
		if ctx.Err() != nil {
			return
		}
		s.log.Debug("no stream to a scheduler", "peer", m.ID, "err", err)
		gone := errors.Is(err, errOther) || refused(dials(m.Addr))
		if gone {
			s.step(func(c *home.Core, now time.Time) { c.PeerRefused(now, m.ID) })
		}
		if !inView.Load() {
			return
		}
		if time.Since(begun) > redialLast {
			pause = redialFirst
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
		pause = min(2*pause, redialLast)
	}
}

// link opens one stream and works it until it breaks.
func (s *Service) link(ctx context.Context, m cluster.Member) error {
	conn, err := s.o.Peers.Conn(m.Addr)
	if err != nil {
		return fmt.Errorf("connect to %s: %w", m.ID, err)
	}
	ctx, end := context.WithCancel(ctx)
	defer end()
	st, err := pb.NewWorkClient(conn).Peer(ctx)
	if err != nil {
		return fmt.Errorf("open stream: %w", err)
	}
	s.mu.Lock()
	term := s.core.Term()
	s.mu.Unlock()
	hello := wire.EncodeToOwner(wire.CallerHello{ID: s.o.Self.ID, Term: term, To: m.ID})
	if err := st.Send(&pb.FromPeer{Items: []*pb.CallerItem{hello}}); err != nil {
		return fmt.Errorf("say hello: %w", err)
	}
	late := time.AfterFunc(helloWithin, end)
	defer late.Stop()
	frame, err := st.Recv()
	if err != nil {
		return fmt.Errorf("await hello: %w", err)
	}
	late.Stop()
	ms, err := decodeOwner(frame)
	if err != nil || len(ms) == 0 {
		return fmt.Errorf("await hello: %w", errors.Join(err, errOther))
	}
	theirs, _ := ms[0].(wire.OwnerHello)
	if theirs.ID != m.ID {
		return fmt.Errorf("%w: %s", errOther, theirs.ID)
	}
	out := wire.NewOutbox[wire.ToOwner]()
	var session uint64
	ok := s.open(func(n uint64) {
		session = n
		s.owners[n] = &stream[wire.ToOwner]{out: out, end: end}
		s.stepLocked(func(c *home.Core, now time.Time) {
			c.PeerUp(now, m.ID, n, theirs.Term)
			for _, v := range ms[1:] {
				c.FromOwner(now, m.ID, n, v)
			}
		})
	}, func() {
		defer end()
		s.readOwner(st, m.ID, session)
	})
	if !ok {
		return ErrStopping
	}
	err = write(ctx, out, wire.EncodeToOwner, func(items []*pb.CallerItem) error {
		return st.Send(&pb.FromPeer{Items: items})
	})
	s.step(func(c *home.Core, now time.Time) {
		delete(s.owners, session)
		c.PeerDown(now, m.ID, session)
	})
	return err
}

func decodeOwner(frame *pb.ToPeer) ([]wire.ToCaller, error) {
	ms := make([]wire.ToCaller, 0, len(frame.GetItems()))
	for _, it := range frame.GetItems() {
		m, err := wire.DecodeToCaller(it)
		if err != nil {
			return nil, err
		}
		if m != nil {
			ms = append(ms, m)
		}
	}
	return ms, nil
}

func (s *Service) readOwner(st pb.Work_PeerClient, id string, session uint64) {
	for {
		frame, err := st.Recv()
		if err != nil {
			return
		}
		ms, err := decodeOwner(frame)
		if err != nil {
			s.log.Error("refused what a scheduler says", "peer", id, "err", err)
			return
		}
		s.step(func(c *home.Core, now time.Time) {
			for _, m := range ms {
				c.FromOwner(now, id, session, m)
			}
		})
	}
}
