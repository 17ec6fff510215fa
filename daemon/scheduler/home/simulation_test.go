package home_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/home"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/operation"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/wire"
)

// begin runs a task, and checks that nobody else does so within reach.
func (s *sim) begin(w *simWorker, t *wire.Task) {
	ref := t.Ref()
	for _, o := range s.workers {
		for _, r := range o.runs {
			if o.alive && !r.over && !r.stopped && r.key == t.Action && !t.DoNotCache && s.now.Sub(o.stalled) > 15*time.Second && s.now.Sub(w.stalled) > 15*time.Second {
				s.fail("%s runs %s attempt %d of %s, which %s, within reach, runs already", w.id, t.Action.Hash()[:6], t.Attempt, t.ID[11:15], o.id)
			}
		}
	}
	s.begun++
	w.runs[ref] = &simRun{key: t.Action}
	s.note("%s runs %s attempt %d of %s", w.id, t.Action.Hash()[:6], t.Attempt, t.ID[11:15])
	prepare := time.Duration(s.rng.IntN(20)) * time.Millisecond
	work := time.Duration(s.rng.IntN(500)) * time.Millisecond
	if s.rng.IntN(10) == 0 {
		work = time.Duration(s.rng.IntN(20)) * time.Second
	}
	s.after(prepare, func() {
		if r := w.runs[ref]; !r.over && !r.stopped {
			s.stepWorker(w, func() { w.core.Started(s.now, ref) })
		}
	})
	s.after(prepare+work, func() {
		if r := w.runs[ref]; !r.over && !r.stopped {
			s.stepWorker(w, func() { w.core.Freed(s.now, ref) })
			code := codes.OK
			if s.faults && s.rng.IntN(50) == 0 {
				code = codes.Internal
			}
			s.after(time.Millisecond, func() { s.end(w, ref, []byte(t.Action.Hash()), code) })
		}
	})
}

func (s *sim) end(w *simWorker, ref wire.Ref, response []byte, code codes.Code) {
	if r := w.runs[ref]; !r.over {
		r.over = true
		s.stepWorker(w, func() { w.core.Ended(s.now, ref, response, code, "ended") })
	}
}

// call makes the client ask a scheduler that lives: for its operation if it
// knows one, else for execution.
func (s *sim) call(c *client) {
	var live []*simSched
	for _, sc := range s.scheds {
		if sc.alive {
			live = append(live, sc)
		}
	}
	c.at = live[s.rng.IntN(len(live))]
	s.nonce++
	c.call = s.nonce
	sc := c.at
	s.note("%s is asked for %s (%v)", sc.id, c.req.Action.Hash()[:6], c.named)
	s.stepSched(sc, func() {
		if c.named {
			sc.core.Wait(s.now, c.call, c.name)
		} else {
			sc.core.Execute(s.now, c.call, s.nonce<<20, c.req)
		}
	})
}

func (s *sim) reply(sc *simSched, r home.Reply) {
	for _, c := range s.clients {
		if c.call != r.Call {
			continue
		}
		if c.done || c.at != sc {
			s.fail("a call that is over is answered by %s: %+v", sc.id, r)
		}
		s.note("%s answers for %s: %v %v gone %v", sc.id, c.req.Action.Hash()[:6], r.Update.Stage, r.Update.Name, r.Gone)
		if r.Gone {
			if !c.named {
				s.fail("an Execute call is told that its operation is gone")
			}
			c.named, c.call = false, 0
			s.after(time.Millisecond, func() { s.call(c) })
			return
		}
		n, err := operation.Parse(r.Update.Name)
		if err != nil {
			s.fail("update without a name: %+v", r.Update)
		}
		c.name, c.named = n, true
		if r.Update.Done {
			c.done, c.err, c.call = true, r.Update.Err, 0
			if c.err == nil && string(r.Update.Response) != c.req.Action.Hash() {
				s.fail("%s is answered by another action's result", c.req.Action.Hash()[:6])
			}
		}
		return
	}
}

func (s *sim) submit() {
	i := s.rng.IntN(40)
	c := &client{req: &wire.Request{
		Action: digest.Of(digest.SHA256, []byte{byte(i)}), Principal: fmt.Sprint(i % 3), Invocation: fmt.Sprint(i % 5),
		Priority: int32(i % 2), DoNotCache: i%7 == 0, FirstOutput: fmt.Sprint(i),
	}}
	s.clients = append(s.clients, c)
	s.call(c)
}

func (s *sim) killSched(sc *simSched) {
	s.note("%s is killed", sc.id)
	sc.alive = false
	for _, p := range sc.links() {
		p.cut()
	}
	for _, c := range s.clients {
		if c.at == sc && !c.done {
			c.call = 0
			s.after(time.Duration(1+s.rng.IntN(300))*time.Millisecond, func() { s.call(c) })
		}
	}
	s.view()
}

func (s *sim) killWorker(w *simWorker) {
	s.note("%s is killed", w.id)
	w.alive = false
	for _, n := range sortedKeys(w.links) {
		w.links[n].cut()
	}
	s.view()
}

func (s *sim) liveScheds() (out []*simSched) {
	for _, sc := range s.scheds {
		if sc.alive {
			out = append(out, sc)
		}
	}
	return out
}

func (s *sim) liveWorkers() (out []*simWorker) {
	for _, w := range s.workers {
		if w.alive {
			out = append(out, w)
		}
	}
	return out
}

// fault does one bad thing.
func (s *sim) fault(kills bool) {
	ws, ss := s.liveWorkers(), s.liveScheds()
	w, sc := ws[s.rng.IntN(len(ws))], ss[s.rng.IntN(len(ss))]
	switch n := s.rng.IntN(10); {
	case n == 0 && kills && len(ss) > 1:
		s.killSched(sc)
		s.after(time.Duration(s.rng.IntN(20))*time.Second, func() { s.addSched() })
	case n == 1 && kills && len(ws) > 1:
		s.killWorker(w)
		s.after(time.Duration(s.rng.IntN(5))*time.Second, func() { s.addWorker(w.name, 2) })
	case n < 6:
		if ks := sortedKeys(w.links); len(ks) > 0 {
			s.note("%s loses a stream", w.id)
			w.links[ks[s.rng.IntN(len(ks))]].cut()
		}
	case n < 8:
		if ks := sortedKeys(sc.owners); len(ks) > 0 {
			s.note("%s loses a stream to a scheduler", sc.id)
			sc.owners[ks[s.rng.IntN(len(ks))]].cut()
		}
	default:
		if ks := sortedKeys(w.links); len(ks) > 0 {
			d := time.Duration(s.rng.IntN(12)) * time.Second
			s.note("%s stalls for %v", w.id, d)
			w.stalled = s.now.Add(d)
			w.links[ks[s.rng.IntN(len(ks))]].stalled = s.now.Add(d)
		}
	}
}

func newSim(t *testing.T, seed uint64, schedulers, workers int) *sim {
	s := &sim{t: t, rng: rand.New(rand.NewPCG(seed, 1)), now: epoch}
	for range schedulers {
		s.addSched()
	}
	for i := range workers {
		s.addWorker(fmt.Sprintf("w%d", i), 2)
	}
	s.run(s.now.Add(2 * time.Second))
	return s
}

// quiet checks that everything asked for was answered and nothing is left.
func (s *sim) quiet() {
	s.t.Helper()
	for _, c := range s.clients {
		if !c.done {
			s.fail("%s was never answered (call %d of %s): %s", c.req.Action.Hash()[:6], c.call, c.at.id, c.at.core.Describe(c.call))
		}
	}
	for _, sc := range s.liveScheds() {
		if st := sc.core.Status(s.now); st.Queued+st.Placed+st.Executing > 0 {
			s.fail("%s is left with %+v", sc.id, st)
		}
	}
	for _, w := range s.liveWorkers() {
		if w.core.Running() > 0 {
			s.fail("%s still runs something", w.id)
		}
	}
}

// report says how much happened, for who reads with -v.
func (s *sim) report() {
	ended := map[string]int{}
	for _, c := range s.clients {
		what := "done"
		if c.err != nil {
			what = c.err.Error()
		}
		ended[what[:min(40, len(what))]]++
	}
	s.t.Logf("%d calls, %d attempts, %d boots: %v", len(s.clients), s.begun, s.boots, ended)
}

var (
	more  = flag.Uint64("seeds", 0, "simulate so many more seeds with nodes killed")
	first = flag.Uint64("first", 0, "begin with this seed")
)

func TestSimulation(t *testing.T) {
	for _, c := range []struct {
		name                string
		schedulers, workers int
		faults, kills       bool
		seeds               uint64
	}{
		{"without faults", 2, 3, false, false, 2},
		{"streams break and stall", 2, 3, true, false, 4},
		{"nodes are killed", 2, 3, true, true, 8 + *more},
		{"many nodes are killed", 5, 6, true, true, 1 + *more/5},
	} {
		t.Run(c.name, func(t *testing.T) {
			for seed := *first; seed < *first+c.seeds; seed++ {
				t.Run(fmt.Sprint(seed), func(t *testing.T) {
					s := newSim(t, seed, c.schedulers, c.workers)
					s.faults = c.faults
					until := s.now.Add(60 * time.Second)
					for s.now.Before(until) {
						s.submit()
						if c.faults && s.rng.IntN(15) == 0 {
							s.fault(c.kills)
						}
						s.run(s.now.Add(time.Duration(s.rng.IntN(300)) * time.Millisecond))
					}
					s.faults = false
					s.run(s.now.Add(90 * time.Second))
					s.quiet()
					s.report()
					if !c.faults {
						for _, cl := range s.clients {
							if cl.err != nil {
								t.Errorf("%s ended with %v", cl.req.Action.Hash()[:6], cl.err)
							}
						}
					}
				})
			}
		})
	}
}
