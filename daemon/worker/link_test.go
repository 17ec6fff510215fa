package worker

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
)

// The streams and the running of actions are tested from both ends, in package
// scheduler.

func TestOutcome(t *testing.T) {
	ended, end := context.WithCancel(t.Context())
	end()
	for _, c := range []struct {
		name string
		ctx  context.Context //nolint:containedctx // a case's
		err  error
		want codes.Code
	}{
		{"a response", t.Context(), nil, codes.OK},
		{"an error that knows its code", t.Context(), fmt.Errorf("fetch inputs: %w", blob.ErrFull), codes.ResourceExhausted},
		{"any other", t.Context(), errors.New("disk on fire"), codes.Internal},
		{"whatever it was, it was killed", ended, blob.ErrFull, codes.Canceled},
	} {
		if got, text := outcome(c.ctx, c.err); got != c.want || (text == "") != (c.err == nil) {
			t.Errorf("%s: got %v, %q", c.name, got, text)
		}
	}
}
