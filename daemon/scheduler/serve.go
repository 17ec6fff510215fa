package scheduler

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/remex-build/terraform-provider-remex/daemon/cluster"
	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/home"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/wire"
)

const (
	probeEvery = 200 * time.Millisecond
	probeFor   = 3 * time.Second // by then the core has given the worker up
)

// errElse ends a stream that somebody opened who looks for another process,
// which had this address before.
var errElse = status.Error(codes.NotFound, "the scheduler that you look for is not here any more")

// errRefused is what a dial to a port fails with at which nothing listens.
var errRefused = syscall.ECONNREFUSED

// write sends what gathers in out until ctx ends or the stream breaks.
func write[T, Item any](ctx context.Context, out *wire.Outbox[T], encode func(T) Item, send func([]Item) error) error {
	var buf []T
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
		items := make([]Item, len(buf))
		for i, v := range buf {
			items[i] = encode(v)
		}
		clear(buf)
		if err := send(items); err != nil {
			return err
		}
	}
}

// open numbers a new stream and starts what serves its other half; false when
// the scheduler has stopped.
func (s *Service) open(event func(session uint64), read func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.session++
	event(s.session)
	s.running.Go(read)
	return true
}

// Worker serves one worker.
func (s *Service) Worker(st grpc.BidiStreamingServer[pb.FromWorker, pb.ToWorker]) error {
	frame, err := st.Recv()
	if err != nil {
		return err
	}
	var hello wire.WorkerHello
	if items := frame.GetItems(); len(items) > 0 {
		hello, _ = wire.DecodeFromWorker(items[0]).(wire.WorkerHello)
	}
	if hello.ID == "" || hello.Name == "" {
		return status.Error(codes.InvalidArgument, "a worker's stream begins with its hello")
	}
	if hello.To != s.o.Self.ID {
		me := wire.EncodeToWorker(wire.SchedulerHello{ID: s.o.Self.ID})
		return errors.Join(st.Send(&pb.ToWorker{Items: []*pb.SchedulerItem{me}}), errElse)
	}
	ctx, end := context.WithCancel(st.Context())
	defer end()
	addr := s.addrOf(hello.ID)
	out := wire.NewOutbox[wire.ToWorker]()
	var session uint64
	ok := s.open(func(n uint64) {
		session = n
		s.workers[n] = &stream[wire.ToWorker]{out: out, end: end}
		out.Put(wire.SchedulerHello{ID: s.o.Self.ID, Term: s.core.Term()})
		s.stepLocked(func(c *home.Core, now time.Time) { c.WorkerUp(now, n, hello) })
	}, func() {
		defer end()
		s.readWorker(st, hello.ID, session)
	})
	if !ok {
		return status.Error(codes.Unavailable, ErrStopping.Text)
	}
	s.log.Debug("worker connected", "worker", hello.Name)
	err = write(ctx, out, wire.EncodeToWorker, func(items []*pb.SchedulerItem) error {
		return st.Send(&pb.ToWorker{Items: items})
	})
	s.log.Debug("worker disconnected", "worker", hello.Name, "err", err)
	s.step(func(c *home.Core, now time.Time) {
		delete(s.workers, session)
		c.WorkerDown(now, hello.ID, session)
	})
	s.probe(hello.ID, cmp.Or(s.addrOf(hello.ID), addr))
	return status.Error(codes.Unavailable, "the stream has ended")
}

func (s *Service) readWorker(st grpc.BidiStreamingServer[pb.FromWorker, pb.ToWorker], id string, session uint64) {
	for {
		frame, err := st.Recv()
		if err != nil {
			return
		}
		s.step(func(c *home.Core, now time.Time) {
			for _, it := range frame.GetItems() {
				if m := wire.DecodeFromWorker(it); m != nil {
					c.FromWorker(now, id, session, m)
				}
			}
		})
	}
}

// addrOf is the worker's address, "" unless it is in view.
func (s *Service) addrOf(id string) string {
	for _, m := range s.o.Members.View().Members {
		if m.ID == id && m.Role == cluster.Worker {
			return m.Addr
		}
	}
	return ""
}

// probe finds out whether a worker whose stream broke is dead: then its port
// refuses, and what it ran need not wait for it to come back.
func (s *Service) probe(id, addr string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if addr == "" || s.closed {
		return
	}
	s.running.Go(func() {
		until := time.Now().Add(probeFor)
		for time.Now().Before(until) {
			if dials(addr) != nil {
				// Only a port that refuses says anything.
				s.step(func(c *home.Core, now time.Time) { c.WorkerGone(now, id) })
				return
			}
			select {
			case <-time.After(probeEvery):
			case <-s.stopped:
				return
			}
		}
	})
}

// dials returns errRefused when nothing listens at addr, and nil otherwise.
func dials(addr string) error {
	ctx, cancel := context.WithTimeout(context.Background(), probeEvery)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err == nil {
		conn.Close()
		return nil
	}
	if errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("dial %s: %w", addr, errRefused)
	}
	return nil
}

// Peer serves the calls that another scheduler received.
func (s *Service) Peer(st grpc.BidiStreamingServer[pb.FromPeer, pb.ToPeer]) error {
	frame, err := st.Recv()
	if err != nil {
		return err
	}
	var hello wire.CallerHello
	if items := frame.GetItems(); len(items) > 0 {
		first, _ := wire.DecodeToOwner(items[0])
		hello, _ = first.(wire.CallerHello)
	}
	if hello.ID == "" {
		return status.Error(codes.InvalidArgument, "a scheduler's stream begins with its hello")
	}
	if hello.To != s.o.Self.ID {
		me := wire.EncodeToCaller(wire.OwnerHello{ID: s.o.Self.ID})
		return errors.Join(st.Send(&pb.ToPeer{Items: []*pb.OwnerItem{me}}), errElse)
	}
	ctx, end := context.WithCancel(st.Context())
	defer end()
	out := wire.NewOutbox[wire.ToCaller]()
	var session uint64
	ok := s.open(func(n uint64) {
		session = n
		s.callers[n] = &stream[wire.ToCaller]{out: out, end: end}
		out.Put(wire.OwnerHello{ID: s.o.Self.ID, Term: s.core.Term()})
		s.stepLocked(func(c *home.Core, now time.Time) { c.CallerUp(now, n, hello) })
	}, func() {
		defer end()
		s.readCaller(st, hello.ID, session)
	})
	if !ok {
		return status.Error(codes.Unavailable, ErrStopping.Text)
	}
	err = write(ctx, out, wire.EncodeToCaller, func(items []*pb.OwnerItem) error {
		return st.Send(&pb.ToPeer{Items: items})
	})
	s.log.Debug("scheduler disconnected", "peer", hello.ID, "err", err)
	s.step(func(c *home.Core, now time.Time) {
		delete(s.callers, session)
		c.CallerDown(now, hello.ID, session)
	})
	return status.Error(codes.Unavailable, "the stream has ended")
}

func (s *Service) readCaller(st grpc.BidiStreamingServer[pb.FromPeer, pb.ToPeer], id string, session uint64) {
	for {
		frame, err := st.Recv()
		if err != nil {
			return
		}
		ms := make([]wire.ToOwner, 0, len(frame.GetItems()))
		for _, it := range frame.GetItems() {
			m, err := wire.DecodeToOwner(it)
			if err != nil {
				s.log.Error("refused what a scheduler says", "peer", id, "err", err)
				return
			}
			if m != nil {
				ms = append(ms, m)
			}
		}
		s.step(func(c *home.Core, now time.Time) {
			for _, m := range ms {
				c.FromCaller(now, id, session, m)
			}
		})
	}
}
