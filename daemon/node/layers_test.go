package node

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// recorder notes in which order parts end.
type recorder struct {
	mu    sync.Mutex
	ended []string
}

func (r *recorder) part(name string, takes time.Duration) part {
	return func(ctx context.Context) error {
		<-ctx.Done()
		time.Sleep(takes)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.ended = append(r.ended, name)
		return nil
	}
}

func TestLayersEndInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r recorder
		ctx, stop := context.WithCancel(t.Context())
		time.AfterFunc(time.Minute, stop)
		err := runLayers(ctx, [][]part{
			{r.part("slow server", time.Second), r.part("server", 0)},
			{r.part("store", time.Second)},
			{r.part("members", 0)},
		})
		want := []string{"server", "slow server", "store", "members"}
		if err != nil || !slices.Equal(r.ended, want) {
			t.Errorf("ended %v, %v; want %v", r.ended, err, want)
		}
	})
}

func TestAFailingPartEndsAll(t *testing.T) {
	broken := errors.New("the disk is gone")
	for name, failing := range map[string]part{
		"with an error": func(context.Context) error { return broken },
		"without one":   func(context.Context) error { return nil },
		"later": func(context.Context) error {
			time.Sleep(time.Minute)
			return broken
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var r recorder
				err := runLayers(t.Context(), [][]part{{r.part("server", 0)}, {failing}, {r.part("members", 0)}})
				if err == nil {
					t.Error("nobody learns of it")
				}
				if want := []string{"server", "members"}; !slices.Equal(r.ended, want) {
					t.Errorf("ended %v, want %v", r.ended, want)
				}
			})
		})
	}
}
