package replica

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
)

// there answers pings alone.
type there struct{ nowhere }

func (there) Call(context.Context, string, pb.Method, proto.Message, proto.Message) error { return nil }

func TestAStepThatTakesLongEnds(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		peers Peers
		after time.Duration
	}{
		{"soon when the node does not answer", nowhere{}, stepAsk},
		{"late when it does", there{}, stall},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := New(Options{Peers: c.peers, Placement: newLayout(2), Log: quiet()})
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				w := s.newWatch("", cancel)
				for range 3 { // none of these takes long
					w.begin(stall)
					time.Sleep(stepAsk / 2)
					w.end()
				}
				time.Sleep(time.Hour)
				if ctx.Err() != nil {
					t.Error("ended without a step")
				}
				begun := time.Now()
				w.begin(stall)
				<-ctx.Done()
				if d := time.Since(begun); d != c.after {
					t.Errorf("ended after %v, want %v", d, c.after)
				}
				w.end()
				s.stop()
				s.wg.Wait()
			})
		})
	}
}
