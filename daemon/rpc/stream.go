package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
)

// stream is the caller's end of one stream of calls.
type stream struct {
	metrics *metrics
	out     *outbox[*pb.Call]
	slots   chan struct{} // one token per call in flight
	broken  chan struct{} // closed when err is set
	heard   atomic.Int64  // when the last frame came, in Unix nanoseconds

	mu      sync.Mutex // guards everything below
	next    uint64
	waiters map[uint64]*waiter
	err     error
}

// waiter is where a caller waits. The channel holds one answer; it is sent only
// by whoever takes the waiter out of stream.waiters.
type waiter struct{ answer chan *pb.Answer }

var waiters = sync.Pool{New: func() any { return &waiter{answer: make(chan *pb.Answer, 1)} }}

func newStream(m *metrics) *stream {
	s := &stream{
		metrics: m,
		slots:   make(chan struct{}, maxRunning),
		broken:  make(chan struct{}),
		waiters: make(map[uint64]*waiter),
	}
	s.out = newOutbox[*pb.Call](s.broken)
	return s
}

// call sends one request and waits for its answer.
func (s *stream) call(ctx context.Context, m pb.Method, req, resp proto.Message) error {
	c := &pb.Call{Method: m}
	if deadline, ok := ctx.Deadline(); ok {
		left := time.Until(deadline)
		if left <= 0 {
			return context.DeadlineExceeded
		}
		c.TimeoutMs = uint32(min((left+time.Millisecond-1)/time.Millisecond, math.MaxUint32))
	}
	var err error
	if c.Body, err = proto.Marshal(req); err != nil {
		return &Error{codes.Internal, fmt.Sprintf("encode request: %v", err)}
	}
	if len(c.Body) > maxBody {
		return &Error{codes.ResourceExhausted, fmt.Sprintf("a request of %d bytes is larger than a message", len(c.Body))}
	}
	select {
	case s.slots <- struct{}{}:
	case <-s.broken:
		return s.err
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-s.slots }()

	w := waiters.Get().(*waiter)
	if err := s.add(c, w); err != nil {
		waiters.Put(w)
		return err
	}
	if !s.out.put(ctx, c, itemSize+len(c.Body)) {
		return s.abandon(ctx, c.Id, w, false)
	}
	select {
	case a := <-w.answer:
		waiters.Put(w)
		return s.outcome(a, resp)
	case <-ctx.Done():
		return s.abandon(ctx, c.Id, w, true)
	}
}

// add gives c its id and registers who waits for it.
func (s *stream) add(c *pb.Call, w *waiter) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	s.next++
	c.Id = s.next
	s.waiters[c.Id] = w
	return nil
}

// abandon ends the call of a caller whose context has ended, or whose stream
// broke before the call could be queued.
func (s *stream) abandon(ctx context.Context, id uint64, w *waiter, queued bool) error {
	s.mu.Lock()
	_, mine := s.waiters[id]
	delete(s.waiters, id)
	s.mu.Unlock()
	if !mine {
		<-w.answer // somebody took the waiter, and sends without delay
	}
	waiters.Put(w)
	if ctx.Err() == nil {
		return s.err
	}
	if mine && queued {
		s.out.push(&pb.Call{Id: id, Cancel: true})
	}
	return ctx.Err()
}

// outcome decodes an answer; nil stands for a stream that broke.
func (s *stream) outcome(a *pb.Answer, resp proto.Message) error {
	if a == nil {
		return s.err
	}
	if a.Code != 0 {
		return answerError(a)
	}
	if err := proto.Unmarshal(a.Body, resp); err != nil {
		return &Error{codes.Internal, fmt.Sprintf("decode answer: %v", err)}
	}
	return nil
}

// greet sends the first frame, which says who calls, and waits for an answer: a
// stream that was opened on a connection to a dead host looks like any other.
func greet(self string, calls grpc.BidiStreamingClient[pb.CallFrame, pb.AnswerFrame]) error {
	err := calls.Send(&pb.CallFrame{From: self, Calls: []*pb.Call{{Method: pb.Method_METHOD_PING}}})
	if err != nil && !errors.Is(err, io.EOF) { // what EOF stands for, Recv tells
		return err
	}
	_, err = calls.Recv()
	return err
}

// run works the stream until it breaks, and returns why.
func (s *stream) run(calls grpc.BidiStreamingClient[pb.CallFrame, pb.AnswerFrame]) error {
	var writer sync.WaitGroup
	writer.Go(func() { s.write(calls) })
	for {
		frame, err := calls.Recv()
		if err != nil {
			s.breakOff(err)
			writer.Wait()
			return err
		}
		s.heard.Store(time.Now().UnixNano())
		for _, a := range frame.Answers {
			s.deliver(a)
		}
	}
}

func (s *stream) deliver(a *pb.Answer) {
	s.mu.Lock()
	w := s.waiters[a.Id]
	delete(s.waiters, a.Id)
	s.mu.Unlock()
	if w != nil {
		w.answer <- a
	}
}

// write sends frames until the stream breaks. Why it did, the reader learns.
func (s *stream) write(calls grpc.BidiStreamingClient[pb.CallFrame, pb.AnswerFrame]) {
	var frame pb.CallFrame
	for {
		frame.Calls = s.out.take(frame.Calls[:0])
		if len(frame.Calls) > 0 {
			if calls.Send(&frame) != nil {
				return
			}
			s.metrics.frames.Inc()
			s.metrics.sent.Add(float64(len(frame.Calls)))
			clear(frame.Calls)
			continue
		}
		select {
		case <-s.out.wake:
			runtime.Gosched() // whoever is about to call, travels along
		case <-s.broken:
			return
		}
	}
}

// breakOff fails all calls in flight, and those to come.
func (s *stream) breakOff(err error) {
	s.mu.Lock()
	s.err = &Error{codes.Unavailable, "stream of calls broke: " + FromStatus(err).Error()}
	gone := s.waiters
	s.waiters = nil
	s.mu.Unlock()
	close(s.broken)
	for _, w := range gone {
		w.answer <- nil
	}
}
