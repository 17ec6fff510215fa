package frontend

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/remex-build/terraform-provider-remex/daemon/rpc"
)

var errPanic = errors.New("internal error")

func (f *Frontend) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (resp any, err error) {
	h := f.held(ctx)
	err = f.observe(ctx, info.FullMethod, func() (err error) {
		resp, err = next(h.in(ctx), req)
		return err
	})
	if err != nil {
		h.drop()
		return nil, err
	}
	if m, ok := resp.(proto.Message); ok && h.n == 0 {
		if n := proto.Size(m); n > largeAnswer {
			if err := h.take(int64(n)); err != nil {
				return nil, rpc.ToStatus(err)
			}
		}
	}
	return h.around(resp), nil
}

func (f *Frontend) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	return f.observe(ss.Context(), info.FullMethod, func() error { return next(srv, ss) })
}

// observe serves one call: counts it, outlives its panics, and gives its error
// the code that clients see. Only registered methods get here, so that the
// labels are bounded.
func (f *Frontend) observe(ctx context.Context, fullMethod string, serve func() error) error {
	method := shortMethod(fullMethod)
	running := f.metrics.inFlight.WithLabelValues(method)
	running.Inc()
	start := time.Now()

	cause := f.protect(ctx, method, serve)
	err := rpc.ToStatus(cause)

	running.Dec()
	f.metrics.seconds.WithLabelValues(method).Observe(time.Since(start).Seconds())
	f.metrics.requests.WithLabelValues(method, status.Code(err).String()).Inc()
	if c := status.Code(err); (c == codes.Internal || c == codes.Unknown || c == codes.DataLoss) && !errors.Is(cause, errPanic) {
		f.log.ErrorContext(ctx, "call failed", "method", method, "err", cause)
	}
	return err
}

func (f *Frontend) protect(ctx context.Context, method string, serve func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			f.metrics.panics.Inc()
			f.log.ErrorContext(ctx, "panic in a call", "method", method, "err", fmt.Sprint(p), "stack", string(debug.Stack()))
			err = errPanic
		}
	}()
	return serve()
}

// shortMethod is "Service/Method" without the service's package.
func shortMethod(full string) string {
	slash := strings.LastIndexByte(full, '/')
	return full[strings.LastIndexByte(full[:max(slash, 0)], '.')+1:]
}
