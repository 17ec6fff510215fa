package rpc

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
)

func TestToStatus(t *testing.T) {
	exhausted := status.New(codes.ResourceExhausted, "no room")
	for _, c := range []struct {
		name string
		err  error
		code codes.Code
		text string
	}{
		{"a Coder", blob.ErrNotFound, codes.NotFound, "blob not found"},
		{"a wrapped Coder keeps the outer text", fmt.Errorf("read x: %w", blob.ErrNotFound), codes.NotFound, "read x: blob not found"},
		{"the outer of two Coders wins", fmt.Errorf("%w: %w", blob.ErrUnavailable, blob.ErrNotFound), codes.Unavailable, "could not tell: blob not found"},
		{"a joined error", errors.Join(errors.New("a"), fmt.Errorf("b: %w", blob.ErrFull)), codes.ResourceExhausted, "a\nb: no room"},
		{"a status", exhausted.Err(), codes.ResourceExhausted, "no room"},
		{"a wrapped status", fmt.Errorf("put: %w", exhausted.Err()), codes.ResourceExhausted, "put: rpc error: code = ResourceExhausted desc = no room"},
		{"a peer's answer", fmt.Errorf("put: %w", FromStatus(exhausted.Err())), codes.ResourceExhausted, "put: no room"},
		{"a cancelled context", fmt.Errorf("x: %w", context.Canceled), codes.Canceled, "x: context canceled"},
		{"a context past its deadline", context.DeadlineExceeded, codes.DeadlineExceeded, "context deadline exceeded"},
		{"anything else", errors.New("boom"), codes.Internal, "boom"},
		{"text that is not UTF-8", errors.New("a\xffb"), codes.Internal, "a\uFFFDb"},
		{"text that is too long", errors.New(strings.Repeat("ü", maxText)), codes.Internal, strings.Repeat("ü", maxText/2) + "..."},
	} {
		t.Run(c.name, func(t *testing.T) {
			st, ok := status.FromError(ToStatus(c.err))
			if !ok || st.Code() != c.code || st.Message() != c.text {
				t.Errorf("got %v %q", st.Code(), st.Message())
			}
			if CodeOf(c.err) != c.code {
				t.Errorf("CodeOf says %v", CodeOf(c.err))
			}
		})
	}
	if ToStatus(nil) != nil || CodeOf(nil) != codes.OK || FromStatus(nil) != nil {
		t.Error("nil is an error")
	}
}

func TestDetailsSurvive(t *testing.T) {
	st, err := status.New(codes.FailedPrecondition, "missing").WithDetails(&errdetails.PreconditionFailure{
		Violations: []*errdetails.PreconditionFailure_Violation{{Type: "MISSING", Subject: "blobs/x/1"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	got := status.Convert(ToStatus(fmt.Errorf("run: %w", FromStatus(st.Err()))))
	if len(got.Details()) != 1 || got.Message() != "run: missing" {
		t.Errorf("got %v", got)
	}
}

func TestFromStatus(t *testing.T) {
	err := FromStatus(status.Error(codes.DeadlineExceeded, "slow"))
	if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) || status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("got %v", err)
	}
	if err := FromStatus(status.Error(codes.NotFound, "")); err.Error() != "NotFound" {
		t.Errorf("got %v", err)
	}
	if local := errors.New("local"); FromStatus(local) != local {
		t.Error("an error that is no status has changed")
	}
}
