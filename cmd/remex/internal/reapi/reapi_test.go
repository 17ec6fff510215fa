package reapi

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

func TestInputsAreNamedBelowTheRoot(t *testing.T) {
	for text, want := range map[string]Input{
		"a":         {"a", "a"},
		"./a//b/":   {"./a//b/", "a/b"},
		".":         {".", "."},
		"/x/y=z":    {"/x/y", "z"},
		"../a=b/c/": {"../a", "b/c"},
		"a=.":       {"a", "."},
	} {
		if got, err := ParseInput(text); err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "=a", "a=", "/abs", "..", "../a", "a=/b", "a=../b", "a=b/../../c"} {
		if got, err := ParseInput(text); err == nil {
			t.Errorf("%q was taken for %+v", text, got)
		}
	}
}

func TestDigestsReadBack(t *testing.T) {
	for _, fn := range []digest.Function{digest.SHA256, digest.BLAKE3, digest.SHA1} {
		d := digest.Of(fn, []byte("x"))
		if got, err := ParseDigest(d.String()); err != nil || got != d {
			t.Errorf("%s: %s, %v", d, got, err)
		}
	}
	hash := digest.Of(digest.SHA256, nil).Hash()
	for _, text := range []string{"", "/", hash, hash + "/", hash + "/x", hash + "/-1", "nope/" + hash + "/0", hash + "/0/0", strings.ToUpper(hash) + "/0"} {
		if got, err := ParseDigest(text); err == nil {
			t.Errorf("%q was taken for %s", text, got)
		}
	}
}

func TestRetryEndsWhenNothingMoves(t *testing.T) {
	unavailable := status.Error(codes.Unavailable, "x")
	for _, tt := range []struct {
		name  string
		err   error
		moves int // of the first tries
		tries int
	}{
		{"final error", status.Error(codes.NotFound, "x"), 0, 1},
		{"local error", errors.New("x"), 0, 1},
		{"unavailable", unavailable, 0, attempts},
		{"unavailable with progress", unavailable, 3, 2 + attempts},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tries := 0
				err := retry(t.Context(), func() (bool, error) {
					tries++
					return tries <= tt.moves, tt.err
				})
				if !errors.Is(err, tt.err) || tries != tt.tries {
					t.Errorf("%d tries instead of %d, %v", tries, tt.tries, err)
				}
			})
		})
	}
}

func TestRetryEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		began := time.Now()
		err := retry(ctx, func() (bool, error) { return false, status.Error(codes.Unavailable, "x") })
		if d := time.Since(began); err == nil || d != 300*time.Millisecond {
			t.Errorf("ended after %s with %v", d, err)
		}
	})
}
