package rpc

import (
	"context"
	"time"

	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
)

// A process that ends closes its connections; one that is frozen, or whose host
// or network has died, does not. Nodes with calls in flight and nothing heard
// are asked for a sign of life.
type patience struct {
	ask   time.Duration // of silence, before a ping is sent
	doubt time.Duration // without an answer to it: not reachable
	end   time.Duration // without an answer to it: the stream is broken
}

// The doubt is longer than what a busy machine makes a healthy process wait.
var defaultPatience = patience{ask: time.Second, doubt: 2 * time.Second, end: 10 * time.Second}

// watch tells reachable whether the node answers, and gives the stream up by
// cancel when it has not for long. It returns when the stream is broken.
func (s *stream) watch(p patience, cancel context.CancelFunc, reachable func(bool)) {
	tick := time.NewTimer(together(p.ask / 2))
	defer tick.Stop()
	var asked time.Time // when the ping under way was sent; zero when none is
	for {
		select {
		case <-s.broken:
			return
		case <-tick.C:
		}
		tick.Reset(together(p.ask / 2))
		now := time.Now()
		heard := time.Unix(0, s.heard.Load())
		switch {
		case !asked.IsZero() && heard.After(asked):
			asked = time.Time{}
			reachable(true)
		case asked.IsZero():
			// The silence of a node that nobody asks anything says nothing.
			if len(s.slots) > 0 && now.Sub(heard) > p.ask {
				asked = now
				s.out.push(&pb.Call{Method: pb.Method_METHOD_PING})
			}
		case now.Sub(asked) > p.end:
			cancel()
			return
		case now.Sub(asked) > p.doubt:
			reachable(false)
		}
	}
}

// together is how long it is to the next multiple of d: the watches of all
// streams wake the process once.
func together(d time.Duration) time.Duration {
	return d - time.Duration(time.Now().UnixNano())%d
}
