package home_test

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/home"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/match"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/operation"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/tasks"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/wire"
	"github.com/remex-build/terraform-provider-remex/daemon/worker/slots"
)

// sim drives schedulers' and workers' cores from one heap of events: messages
// take time, streams break and lose what was on its way, nodes are killed and
// come back. Everything follows from the seed.
type sim struct {
	t    *testing.T
	rng  *rand.Rand
	now  time.Time
	heap events
	seq  int
	log  []string

	scheds  []*simSched
	workers []*simWorker
	clients []*client
	boots   int
	nonce   uint64
	session uint64
	faults  bool
	begun   int // attempts
}

type event struct {
	at  time.Time
	seq int
	do  func()
}

type events []event

func (h events) Len() int { return len(h) }
func (h events) Less(i, j int) bool {
	return h[i].at.Before(h[j].at) || h[i].at.Equal(h[j].at) && h[i].seq < h[j].seq
}
func (h events) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *events) Push(x any)   { *h = append(*h, x.(event)) }
func (h *events) Pop() any {
	old := *h
	e := old[len(old)-1]
	*h = old[:len(old)-1]
	return e
}

func (s *sim) after(d time.Duration, do func()) {
	s.seq++
	heap.Push(&s.heap, event{s.now.Add(d), s.seq, do})
}

func (s *sim) run(until time.Time) {
	for len(s.heap) > 0 && !s.heap[0].at.After(until) {
		e := heap.Pop(&s.heap).(event)
		s.now = e.at
		e.do()
	}
	s.now = until
}

func (s *sim) note(format string, args ...any) {
	s.log = append(s.log, fmt.Sprintf("%8.3f ", s.now.Sub(epoch).Seconds())+fmt.Sprintf(format, args...))
}

func (s *sim) fail(format string, args ...any) {
	s.t.Helper()
	tail := s.log[max(0, len(s.log)-1000):]
	s.t.Fatalf("%s\n%s", fmt.Sprintf(format, args...), strings.Join(tail, "\n"))
}

var epoch = time.Unix(1_700_000_000, 0)

// pipe is one stream. What is sent in one direction arrives in order, and not
// at all once the stream is broken.
type pipe struct {
	s            *sim
	broken       bool
	at           [2]time.Time // of the last arrival, per direction
	stalled      time.Time    // nothing arrives before
	downA, downB func()
}

func (p *pipe) send(dir int, deliver func()) {
	at := p.s.now.Add(time.Duration(100+p.s.rng.IntN(2000)) * time.Microsecond)
	if p.s.faults && p.s.rng.IntN(200) == 0 {
		at = at.Add(time.Duration(p.s.rng.IntN(400)) * time.Millisecond) // late
	}
	for _, t := range []time.Time{p.at[dir], p.stalled} {
		if at.Before(t) {
			at = t
		}
	}
	p.at[dir] = at
	p.s.after(at.Sub(p.s.now), func() {
		if !p.broken {
			deliver()
		}
	})
}

func (p *pipe) cut() {
	if !p.broken {
		p.broken = true
		p.downA()
		p.downB()
	}
}

type simSched struct {
	id    string
	core  *home.Core
	alive bool

	workers map[uint64]*wlink
	owners  map[uint64]*plink // our streams to peers, by our session
	callers map[uint64]*plink // peers' streams to us, by our session
}

// wlink is a worker's stream to a scheduler, plink a scheduler's to another.
type wlink struct {
	pipe
	w      *simWorker
	sc     *simSched
	ws, ss uint64
}

type plink struct {
	pipe
	from, to *simSched
	fs, ts   uint64
}

type simWorker struct {
	id, name string
	core     *slots.Core
	alive    bool
	links    map[uint64]*wlink // by the worker's session
	runs     map[wire.Ref]*simRun
	stalled  time.Time // until when one of its streams last was, or had been
}

type simRun struct {
	key     digest.Digest
	stopped bool
	over    bool
}

type client struct {
	req   *wire.Request
	at    *simSched
	name  operation.Name
	named bool
	call  uint64
	done  bool
	err   error
}

func (s *sim) addSched() *simSched {
	s.boots++
	sc := &simSched{
		id: fmt.Sprintf("s-%d", s.boots), alive: true, workers: map[uint64]*wlink{}, owners: map[uint64]*plink{}, callers: map[uint64]*plink{},
	}
	sc.core = home.New(s.now, tasks.Config{Self: sc.id, Rules: match.DefaultRules(), MaxQueued: 1000, FinishedBytes: 1 << 20})
	for _, other := range s.scheds {
		if other.alive {
			s.dialPeer(sc, other)
			s.dialPeer(other, sc)
		}
	}
	s.scheds = append(s.scheds, sc)
	s.note("%s begins", sc.id)
	for _, w := range s.workers {
		if w.alive {
			s.dialWorker(w, sc)
		}
	}
	s.tickSched(sc)
	s.view()
	return sc
}

func (s *sim) addWorker(name string, executors int) {
	s.boots++
	w := &simWorker{id: fmt.Sprintf("%s-%d", name, s.boots), name: name, alive: true, links: map[uint64]*wlink{}, runs: map[wire.Ref]*simRun{}}
	w.core = slots.New(slots.Config{Self: w.id, Name: name, Executors: executors, FinishedBytes: 1 << 20})
	s.workers = append(s.workers, w)
	for _, sc := range s.scheds {
		if sc.alive {
			s.dialWorker(w, sc)
		}
	}
	s.tickWorker(w)
	s.view()
}

// view tells all schedulers, each in its own time, who there is.
func (s *sim) view() {
	for _, sc := range s.scheds {
		s.after(time.Duration(s.rng.IntN(300))*time.Millisecond, func() {
			var scheds, workers []string
			for _, o := range s.liveScheds() {
				scheds = append(scheds, o.id)
			}
			for _, w := range s.liveWorkers() {
				workers = append(workers, w.id)
			}
			s.stepSched(sc, func() { sc.core.View(s.now, scheds, workers) })
		})
	}
}

func (s *sim) tickSched(sc *simSched) {
	if sc.alive {
		s.stepSched(sc, func() { sc.core.Tick(s.now) })
		s.after(50*time.Millisecond, func() { s.tickSched(sc) })
	}
}

func (s *sim) tickWorker(w *simWorker) {
	if w.alive {
		s.stepWorker(w, func() { w.core.Tick(s.now) })
		s.after(50*time.Millisecond, func() { s.tickWorker(w) })
	}
}

func (s *sim) stepSched(sc *simSched, event func()) {
	if !sc.alive {
		return
	}
	event()
	for _, e := range slices.Clone(sc.core.Take()) {
		switch e := e.(type) {
		case tasks.Send:
			if o, ok := e.Msg.(wire.Own); ok {
				s.note("%s owns %s at %s", sc.id, o.Task[11:35], e.Worker)
			}
			if l := sc.workers[e.Session]; l != nil {
				l.send(0, func() {
					s.stepWorker(l.w, func() { l.w.core.Received(s.now, sc.id, l.ws, e.Msg) })
				})
			}
		case tasks.Close:
			if l := sc.workers[e.Session]; l != nil {
				l.cut()
			}
		case home.SendOwner:
			if m, ok := e.Msg.(wire.Submit); ok {
				s.note("%s submits %s to %s except %q", sc.id, m.Request.Action.Hash()[:6], e.Peer, m.Except)
			}
			if m, ok := e.Msg.(wire.Keeps); ok {
				s.note("%s keeps %v from %s", sc.id, m.Keys, e.Peer)
			}
			if l := sc.owners[e.Session]; l != nil {
				l.send(0, func() {
					s.stepSched(l.to, func() { l.to.core.FromCaller(s.now, sc.id, l.ts, e.Msg) })
				})
			}
		case home.SendCaller:
			if m, ok := e.Msg.(wire.NotMine); ok {
				s.note("%s says not mine to %s for %d", sc.id, e.Peer, m.Call)
			}
			if l := sc.callers[e.Session]; l != nil {
				l.send(1, func() {
					s.stepSched(l.from, func() { l.from.core.FromOwner(s.now, sc.id, l.fs, e.Msg) })
				})
			}
		case home.Reply:
			s.reply(sc, e)
		case home.Rejoin:
			s.note("%s rejoins", sc.id)
			for _, l := range sc.links() {
				s.after(0, l.cut)
			}
		}
	}
}

func (sc *simSched) links() (ps []*pipe) {
	for _, n := range sortedKeys(sc.workers) {
		ps = append(ps, &sc.workers[n].pipe)
	}
	for _, n := range sortedKeys(sc.owners) {
		ps = append(ps, &sc.owners[n].pipe)
	}
	for _, n := range sortedKeys(sc.callers) {
		ps = append(ps, &sc.callers[n].pipe)
	}
	return ps
}

func sortedKeys[V any](m map[uint64]V) []uint64 {
	ks := make([]uint64, 0, len(m))
	for k := range m {
		ks = append(ks, k)
	}
	slices.Sort(ks)
	return ks
}

func (s *sim) redial() time.Duration { return time.Duration(20+s.rng.IntN(500)) * time.Millisecond }

// dialWorker opens the worker's stream to the scheduler, again and again.
func (s *sim) dialWorker(w *simWorker, sc *simSched) {
	if !w.alive || !sc.alive {
		return
	}
	held := w.core.Held()
	s.after(time.Duration(1+s.rng.IntN(3))*time.Millisecond, func() {
		if !w.alive || !sc.alive {
			return
		}
		s.session += 2
		l := &wlink{pipe: pipe{s: s}, w: w, sc: sc, ws: s.session, ss: s.session + 1}
		l.downA = func() {
			delete(sc.workers, l.ss)
			s.stepSched(sc, func() { sc.core.WorkerDown(s.now, w.id, l.ss) })
			if !w.alive {
				s.after(10*time.Millisecond, func() { s.stepSched(sc, func() { sc.core.WorkerGone(s.now, w.id) }) })
			}
		}
		l.downB = func() {
			delete(w.links, l.ws)
			s.stepWorker(w, func() { w.core.SchedulerDown(s.now, sc.id, l.ws) })
			s.after(s.redial(), func() { s.dialWorker(w, sc) })
		}
		sc.workers[l.ss] = l
		term := sc.core.Term()
		l.send(0, func() {
			w.links[l.ws] = l
			s.stepWorker(w, func() { w.core.SchedulerUp(s.now, sc.id, l.ws, term) })
		})
		s.stepSched(sc, func() {
			sc.core.WorkerUp(s.now, l.ss, wire.WorkerHello{ID: w.id, Name: w.name, Executors: 2, Attempts: held})
		})
	})
}

func (s *sim) dialPeer(from, to *simSched) {
	if !from.alive {
		return
	}
	if !to.alive {
		s.after(time.Millisecond, func() {
			s.note("%s finds that %s is dead", from.id, to.id)
			s.stepSched(from, func() { from.core.PeerRefused(s.now, to.id) })
		})
		return
	}
	hello := wire.CallerHello{ID: from.id, Term: from.core.Term()}
	s.after(time.Duration(1+s.rng.IntN(3))*time.Millisecond, func() {
		if !from.alive || !to.alive {
			s.after(s.redial(), func() { s.dialPeer(from, to) })
			return
		}
		s.session += 2
		l := &plink{pipe: pipe{s: s}, from: from, to: to, fs: s.session, ts: s.session + 1}
		up := false
		l.downA = func() {
			delete(from.owners, l.fs)
			if up {
				s.stepSched(from, func() { from.core.PeerDown(s.now, to.id, l.fs) })
			}
			s.after(s.redial(), func() { s.dialPeer(from, to) })
		}
		l.downB = func() {
			delete(to.callers, l.ts)
			s.stepSched(to, func() { to.core.CallerDown(s.now, from.id, l.ts) })
		}
		to.callers[l.ts] = l
		term := to.core.Term()
		l.send(1, func() {
			up = true
			from.owners[l.fs] = l
			s.note("%s is connected to %s", from.id, to.id)
			s.stepSched(from, func() { from.core.PeerUp(s.now, to.id, l.fs, term) })
		})
		s.stepSched(to, func() { to.core.CallerUp(s.now, l.ts, hello) })
	})
}

func (s *sim) stepWorker(w *simWorker, event func()) {
	if !w.alive {
		return
	}
	event()
	for _, e := range slices.Clone(w.core.Take()) {
		switch e := e.(type) {
		case slots.Send:
			if l := w.links[e.Session]; l != nil {
				l.send(1, func() {
					s.stepSched(l.sc, func() { l.sc.core.FromWorker(s.now, w.id, l.ss, e.Msg) })
				})
			}
		case slots.Run:
			s.begin(w, e.Task)
		case slots.Stop:
			if r := w.runs[e.Ref]; r != nil && !r.over {
				r.stopped = true
				s.after(time.Millisecond, func() { s.end(w, e.Ref, nil, codes.Canceled) })
			}
		}
	}
}
