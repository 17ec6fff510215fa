package rpc

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
)

const (
	// maxRunning bounds the handlers that one stream keeps busy. A caller has no
	// more calls in flight than that, so that its cancellations are always read.
	maxRunning = 1024
	// maxIdle is how many of a stream's goroutines wait for the next call: a new
	// goroutine's stack has to grow first.
	maxIdle = 16
	// requestBudget bounds the bytes of requests that all handlers of a Mux work
	// on; beyond it streams are not read.
	requestBudget = 64 << 20
	// closeGrace is how long Close lets handlers finish.
	closeGrace = 2 * time.Second
)

type handler func(ctx context.Context, from string, body []byte) (proto.Message, error)

// Mux answers calls. Its handlers run concurrently, also those for calls of one
// stream; a stream with maxRunning of them at work, or a node with requestBudget
// bytes of requests at hand, is not read until some have finished.
type Mux struct {
	pb.UnimplementedCallsServer

	log      *slog.Logger
	handlers map[pb.Method]handler // complete before Register
	budget   *Budget
	closing  chan struct{}
	close    sync.Once
	streams  sync.WaitGroup
}

// NewMux makes a Mux that answers pings.
func NewMux(log *slog.Logger) *Mux {
	m := &Mux{
		log:      log,
		handlers: make(map[pb.Method]handler),
		budget:   NewBudget(requestBudget),
		closing:  make(chan struct{}),
	}
	Handle(m, pb.Method_METHOD_PING, func(context.Context, string, *pb.Ping) (*pb.Ping, error) { return &pb.Ping{}, nil })
	return m
}

// Handle makes m answer method by f. The context ends with the caller's, or with
// the stream; from is the caller's Member.ID. f owns req. All handlers are there
// before the server serves.
func Handle[Req, Resp any, PReq interface {
	*Req
	proto.Message
}, PResp interface {
	*Resp
	proto.Message
}](m *Mux, method pb.Method, f func(ctx context.Context, from string, req PReq) (PResp, error),
) {
	if m.handlers[method] != nil {
		panic(fmt.Sprintf("rpc: two handlers for %v", method))
	}
	m.handlers[method] = func(ctx context.Context, from string, body []byte) (proto.Message, error) {
		req := PReq(new(Req))
		if err := proto.Unmarshal(body, req); err != nil {
			return nil, &Error{codes.InvalidArgument, fmt.Sprintf("decode request: %v", err)}
		}
		return f(ctx, from, req)
	}
}

// Register makes s serve m's calls.
func (m *Mux) Register(s grpc.ServiceRegistrar) { pb.RegisterCallsServer(s, m) }

// Close ends all streams, after the handlers at work have answered or two
// seconds have passed, and waits for them. It comes before the server's
// GracefulStop, which would wait for the streams for ever.
func (m *Mux) Close() {
	m.close.Do(func() { close(m.closing) })
	m.streams.Wait()
}

// Call serves one stream.
func (m *Mux) Call(s grpc.BidiStreamingServer[pb.CallFrame, pb.AnswerFrame]) error {
	select {
	case <-m.closing:
		return status.Error(codes.Unavailable, "shutting down")
	default:
	}
	m.streams.Add(1)
	defer m.streams.Done()
	ctx, cancel := context.WithCancel(s.Context())
	defer cancel()
	a := &answering{
		mux:     m,
		ctx:     ctx,
		out:     newOutbox[*pb.Answer](ctx.Done()),
		slots:   make(chan struct{}, maxRunning),
		jobs:    make(chan job),
		running: make(map[uint64]context.CancelFunc),
	}
	// Receiving has no way to end but by the stream's end, which comes when
	// this function returns: nobody can wait for it here.
	received := make(chan error, 1)
	go func() { received <- a.receive(s.Recv) }()
	err := a.send(s.Send, received)
	cancel()
	a.wait()
	return err
}

// answering is the state of one stream.
type answering struct {
	mux   *Mux
	ctx   context.Context // the stream's, whose state this is
	out   *outbox[*pb.Answer]
	slots chan struct{} // one token per handler
	jobs  chan job      // to goroutines that have nothing to do
	idle  sync.WaitGroup

	mu      sync.Mutex                    // guards everything below
	running map[uint64]context.CancelFunc // by call id
	waiting int                           // goroutines that have nothing to do
	closed  bool                          // no call is accepted
}

type job struct {
	ctx    context.Context // a call in a queue of length zero
	cancel context.CancelFunc
	from   string
	call   *pb.Call
}

// receive starts the calls that arrive until the stream ends.
func (a *answering) receive(recv func() (*pb.CallFrame, error)) error {
	var from string
	for {
		frame, err := recv()
		if err != nil {
			return err
		}
		if frame.From != "" {
			from = frame.From
		}
		for _, c := range frame.Calls {
			if c.Cancel {
				a.cancel(c.Id)
				continue
			}
			if !a.start(from, c) {
				return a.ctx.Err()
			}
		}
	}
}

func (a *answering) cancel(id uint64) {
	a.mu.Lock()
	cancel := a.running[id]
	a.mu.Unlock()
	if cancel != nil {
		cancel()
	}
}

// start waits for a slot and hands c to a goroutine. It reports false when the
// stream has ended.
func (a *answering) start(from string, c *pb.Call) bool {
	select {
	case a.slots <- struct{}{}:
	case <-a.ctx.Done():
		return false
	}
	if err := a.mux.budget.Acquire(a.ctx, int64(len(c.Body))); err != nil {
		<-a.slots
		return false
	}
	j := job{from: from, call: c}
	if c.TimeoutMs > 0 {
		j.ctx, j.cancel = context.WithTimeout(a.ctx, time.Duration(c.TimeoutMs)*time.Millisecond)
	} else {
		j.ctx, j.cancel = context.WithCancel(a.ctx)
	}
	a.mu.Lock()
	if a.closed {
		a.mu.Unlock()
		j.cancel()
		a.release(c)
		a.out.push(&pb.Answer{Id: c.Id, Code: uint32(codes.Unavailable), Message: "shutting down"})
		return true
	}
	a.running[c.Id] = j.cancel
	reuse := a.waiting > 0
	if reuse {
		a.waiting--
	} else {
		a.idle.Add(1)
	}
	a.mu.Unlock()
	if reuse {
		a.jobs <- j // somebody counted as waiting takes it at once
	} else {
		go a.work(j)
	}
	return true
}

// work runs one job after another, and ends when enough others wait for one.
func (a *answering) work(j job) {
	defer a.idle.Done()
	for {
		a.answer(j)
		a.mu.Lock()
		if a.waiting >= maxIdle || a.ctx.Err() != nil {
			a.mu.Unlock()
			return
		}
		a.waiting++
		a.mu.Unlock()
		select {
		case j = <-a.jobs:
		case <-a.ctx.Done():
			a.mu.Lock()
			if a.waiting > 0 {
				a.waiting--
				a.mu.Unlock()
				return
			}
			// start has counted on this goroutine, or on one in the same place.
			a.mu.Unlock()
			j = <-a.jobs
		}
	}
}

// answer runs the handler of one call and queues what it returns.
func (a *answering) answer(j job) {
	msg, err := a.handle(j)
	ans := &pb.Answer{Id: j.call.Id}
	if err == nil && msg != nil {
		if ans.Body, err = proto.Marshal(msg); err == nil && len(ans.Body) > maxBody {
			ans.Body, err = nil, &Error{codes.ResourceExhausted, fmt.Sprintf("the answer to %v is larger than a message", j.call.Method)}
		}
	}
	if err != nil {
		ans.Code = uint32(CodeOf(err))
		ans.Message = cleanText(err.Error())
	}
	gone := j.ctx.Err() == context.Canceled // contexts return it bare
	a.release(j.call)
	if !gone { // else nobody waits for it
		a.out.put(a.ctx, ans, itemSize+len(ans.Body))
	}
	a.mu.Lock()
	delete(a.running, j.call.Id)
	a.mu.Unlock()
	j.cancel()
	<-a.slots
	a.out.signal() // the last one to finish wakes a closing stream
}

func (a *answering) release(c *pb.Call) { a.mux.budget.Release(a.ctx, int64(len(c.Body))) }

func (a *answering) handle(j job) (msg proto.Message, err error) {
	h := a.mux.handlers[j.call.Method]
	if h == nil {
		return nil, &Error{codes.Unimplemented, fmt.Sprintf("this node does not answer %v", j.call.Method)}
	}
	defer func() {
		if p := recover(); p != nil {
			a.mux.log.Error("handler panicked", "method", j.call.Method.String(), "peer", j.from,
				"err", fmt.Sprint(p), "stack", string(debug.Stack()))
			msg, err = nil, &Error{codes.Internal, fmt.Sprintf("%v panicked", j.call.Method)}
		}
	}()
	return h(j.ctx, j.from, j.call.Body)
}
