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

// retryUploads is when an upload that was not admitted is to be tried again.
const retryUploads = 500 * time.Millisecond

// smallAnswer is how large an answer is that costs no more than its call.
const smallAnswer = 4 << 10

// A large answer is one whose bytes matter. It waits for answerRoom, for itself
// as it came, decoded and encoded, before it is read.
const (
	largeAnswer = 64 << 10
	answerRoom  = 2 * maxMessage
)

// held is the part of the budget that one call has, until its answer has left.
type held struct {
	f   *Frontend
	ctx context.Context //nolint:containedctx // the call's, which the budget knows it by
	n   int64
}

type heldKey struct{}

func (h *held) in(ctx context.Context) context.Context { return context.WithValue(ctx, heldKey{}, h) }

// held is what the call of ctx has.
func (f *Frontend) held(ctx context.Context) *held {
	if h, ok := ctx.Value(heldKey{}).(*held); ok {
		return h
	}
	return &held{f: f, ctx: ctx}
}

// take waits for n bytes, of which there must be none yet: a call that waited
// for more while it has some could wait for others that do the same.
func (h *held) take(n int64) error {
	if err := h.f.budget.Acquire(h.ctx, n); err != nil {
		return err
	}
	h.n = n
	return nil
}

// set makes it n bytes at once, which are in memory already.
func (h *held) set(n int64) {
	if n > h.n {
		h.f.budget.Take(h.ctx, n-h.n)
	} else {
		h.f.budget.Release(h.ctx, h.n-n)
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
	return rpc.Hold(h.ctx, answer, func() { h.f.budget.Release(h.ctx, n) })
}

// hold takes n bytes of the budget, and returns what gives them back.
func (f *Frontend) hold(ctx context.Context, n int64) (release func(), err error) {
	h := held{f: f, ctx: ctx}
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
	h := held{f: f, ctx: ctx}
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
			m.Handler = holding(m.Handler, n)
		}
	}
	return &desc
}

func holding(next grpc.MethodHandler, room int64) grpc.MethodHandler {
	return func(srv any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) { //nolint:revive // grpc's signature
		f := srv.(interface{ frontend() *Frontend }).frontend()
		done, err := f.bring()
		if err != nil {
			return nil, err
		}
		defer done()
		h := &held{f: f, ctx: ctx}
		if err := h.take(room); err != nil {
			return nil, rpc.ToStatus(err)
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

// bring admits a call that brings blobs, until done is called.
func (f *Frontend) bring() (done func(), err error) {
	if n := f.bringing.Add(1); n > f.maxUploads {
		f.bringing.Add(-1)
		return nil, errUploads
	}
	return func() { f.bringing.Add(-1) }, nil
}

var errUploads = withDetails(codes.ResourceExhausted,
	"this scheduler receives as many uploads at once as its stream budget has room for; try again",
	&errdetails.RetryInfo{RetryDelay: durationpb.New(retryUploads)})
