package frontend

import (
	"context"
	"slices"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/remex-build/terraform-provider-remex/daemon/rpc"
)

// placeWait is how long an upload waits to be admitted, and retryUploads when one
// that was not is to be tried again.
const (
	placeWait    = 10 * time.Second
	retryUploads = 500 * time.Millisecond
)

// smallAnswer is how large an answer is that costs no more than its call.
const smallAnswer = 4 << 10

// A large answer is one whose bytes matter. It waits for answerRoom, for itself
// as it came, decoded and encoded, before it is read.
const (
	largeAnswer = 64 << 10
	answerRoom  = 2 * maxMessage
)

// held is the part of a budget that one call has, until its answer has left.
type held struct {
	b   *rpc.Budget
	ctx context.Context //nolint:containedctx // the call's, which the budget knows it by
	n   int64
}

// answer is what the call of ctx holds for its answer, which is nothing yet.
func (f *Frontend) answer(ctx context.Context) *held { return &held{b: f.answers, ctx: ctx} }

type heldKey struct{}

func (h *held) in(ctx context.Context) context.Context { return context.WithValue(ctx, heldKey{}, h) }

// held is what the call of ctx has.
func (f *Frontend) held(ctx context.Context) *held {
	if h, ok := ctx.Value(heldKey{}).(*held); ok {
		return h
	}
	return f.answer(ctx)
}

// take waits for n bytes, of which there must be none yet: a call that waited
// for more while it has some could wait for others that do the same.
func (h *held) take(n int64) error {
	if err := h.b.Acquire(h.ctx, n); err != nil {
		return err
	}
	h.n = n
	return nil
}

// takeWithin is take that waits no longer than d.
func (h *held) takeWithin(d time.Duration, n int64) error {
	ctx, cancel := context.WithTimeout(h.ctx, d)
	defer cancel()
	if err := h.b.Acquire(ctx, n); err != nil {
		return err
	}
	h.n = n
	return nil
}

// set makes it n bytes at once, which are in memory already.
func (h *held) set(n int64) {
	if n > h.n {
		h.b.Take(h.ctx, n-h.n)
	} else {
		h.b.Release(h.ctx, h.n-n)
	}
	h.n = n
}

// drop gives everything back.
func (h *held) drop() { h.set(0) }

// around is the answer, to be sent in reply to the call, after which what is
// held for it is given back.
func (h *held) around(answer any) any {
	n := h.n
	if n == 0 {
		return answer
	}
	h.n = 0
	return rpc.Hold(h.ctx, answer, func() { h.b.Release(h.ctx, n) })
}

// hold takes n bytes for what is read, and returns what gives them back.
func (f *Frontend) hold(ctx context.Context, n int64) (release func(), err error) {
	h := f.answer(ctx)
	if err := h.take(n); err != nil {
		return nil, err
	}
	return h.drop, nil
}

// beside is hold for a call that may have something already.
func (f *Frontend) beside(ctx context.Context, has *held, n int64) (release func(), err error) {
	if has == nil || has.n == 0 {
		return f.hold(ctx, n)
	}
	h := f.answer(ctx)
	h.set(n)
	return h.drop, nil
}

// withRoom makes methods hold a part of the budget before their requests are
// received, given by name, and what these take once they are there.
func withRoom(desc grpc.ServiceDesc, room map[string]int64) *grpc.ServiceDesc {
	desc.Methods = slices.Clone(desc.Methods)
	for i := range desc.Methods {
		m := &desc.Methods[i]
		if n := room[m.MethodName]; n > 0 {
			m.Handler = holding(m.Handler, "/"+desc.ServiceName+"/"+m.MethodName, n)
		}
	}
	return &desc
}

func holding(next grpc.MethodHandler, method string, room int64) grpc.MethodHandler {
	return func(srv any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) { //nolint:revive // grpc's signature
		f := srv.(interface{ frontend() *Frontend }).frontend()
		if err := f.bring(ctx); err != nil {
			return nil, f.observe(ctx, method, func() error { return err })
		}
		defer f.places.Release(ctx, 1)
		h := &held{b: f.incoming, ctx: ctx}
		if err := h.take(room); err != nil {
			return nil, f.observe(ctx, method, func() error { return err })
		}
		resp, err := next(srv, h.in(ctx), func(req any) error {
			err := decode(req)
			h.set(int64(proto.Size(req.(proto.Message))))
			return err
		}, intercept)
		if err != nil {
			h.drop()
		}
		return resp, err
	}
}

func (f *Frontend) frontend() *Frontend { return f }

// bring admits a call that brings blobs, which gives its place back at its end.
func (f *Frontend) bring(ctx context.Context) error {
	waiting, cancel := context.WithTimeout(ctx, placeWait)
	defer cancel()
	err := f.places.Acquire(waiting, 1)
	if err != nil && ctx.Err() == nil {
		return errUploads
	}
	return err
}

var errUploads = withDetails(codes.ResourceExhausted,
	"as many uploads are open as this scheduler's stream-budget has room for; try again",
	&errdetails.RetryInfo{RetryDelay: durationpb.New(retryUploads)})
