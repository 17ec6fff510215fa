package slots_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"pgregory.net/rapid"

	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/queue"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/wire"
	"github.com/remex-build/terraform-provider-remex/daemon/worker/slots"
)

// tester is a *testing.T or a *rapid.T.
type tester interface {
	Helper()
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// rig is a core, what the schedulers were told and what was begun.
type rig struct {
	t       tester
	c       *slots.Core
	now     time.Time
	session map[string]uint64
	last    uint64
	said    map[string][]wire.FromWorker
	runs    map[wire.Ref]int // executors of what runs
	ahead   map[wire.Ref]bool
	stopped map[wire.Ref]bool
}

func newRig(t tester, executors int) *rig {
	return &rig{
		t: t, now: time.Unix(1_700_000_000, 0), session: map[string]uint64{}, said: map[string][]wire.FromWorker{},
		runs: map[wire.Ref]int{}, ahead: map[wire.Ref]bool{}, stopped: map[wire.Ref]bool{},
		c: slots.New(slots.Config{Self: "w-1", Name: "w", Executors: executors, FinishedBytes: 1 << 20}),
	}
}

func (r *rig) take() {
	for _, e := range r.c.Take() {
		switch e := e.(type) {
		case slots.Send:
			if e.Session != r.session[e.Scheduler] {
				r.t.Fatalf("%s is told %+v over a stream that ended", e.Scheduler, e.Msg)
			}
			r.said[e.Scheduler] = append(r.said[e.Scheduler], e.Msg)
		case slots.Run:
			for ref, i := range r.runs {
				if i == e.Executor {
					r.t.Fatalf("executor %d runs %v and is given %v", i, ref, e.Task.Ref())
				}
			}
			r.runs[e.Task.Ref()] = e.Executor
			delete(r.ahead, e.Task.Ref())
		case slots.Prefetch:
			r.ahead[e.Task.Ref()] = true
		case slots.Stop:
			r.stopped[e.Ref] = true
			delete(r.ahead, e.Ref)
		}
	}
}

func (r *rig) up(id string, term uint64) {
	r.last++
	r.session[id] = r.last
	r.c.SchedulerUp(r.now, id, r.last, term)
	r.take()
}

func (r *rig) down(id string) {
	r.c.SchedulerDown(r.now, id, r.session[id])
	r.take()
}

func (r *rig) gets(id string, m wire.ToWorker) {
	r.c.Received(r.now, id, r.session[id], m)
	r.take()
}

// pass lets time pass, in which the schedulers named say that they live.
func (r *rig) pass(d time.Duration, alive ...string) {
	const step = 50 * time.Millisecond
	for ; d > 0; d -= step {
		r.now = r.now.Add(min(d, step))
		for _, id := range alive {
			r.gets(id, wire.SchedulerBeat{})
		}
		r.c.Tick(r.now)
		r.take()
	}
}

// heard returns what was said of type M, and forgets everything that was said.
func heard[M wire.FromWorker](r *rig, id string) (ms []M) {
	for _, m := range r.said[id] {
		if m, ok := m.(M); ok {
			ms = append(ms, m)
		}
	}
	r.said[id] = nil
	return ms
}

func task(name string) *wire.Task { return &wire.Task{ID: name, Attempt: 1} }

func (r *rig) end(ref wire.Ref, response string) {
	delete(r.runs, ref)
	r.c.Ended(r.now, ref, []byte(response), codes.OK, "")
	r.take()
}

func bid(priority int32, want uint32) wire.Bid {
	return wire.Bid{Class: queue.Class{Priority: priority}, Want: want}
}

func one[M any](t tester, ms []M) M {
	t.Helper()
	if len(ms) != 1 {
		t.Fatalf("got %+v, want one", ms)
	}
	return ms[0]
}

func TestLending(t *testing.T) {
	t.Run("free executors are spread over the schedulers", func(t *testing.T) {
		r := newRig(t, 4)
		r.up("a", 1)
		if got := len(heard[wire.Lend](r, "a")); got != 4 {
			t.Fatalf("the only scheduler is lent %d", got)
		}
		r.up("b", 1)
		for i := range uint32(4) {
			r.gets("a", wire.Offer{Slot: i, Seq: uint64(i) + 1, Task: task(fmt.Sprint(i))})
		}
		for i := range 4 {
			r.end(wire.Ref{Task: fmt.Sprint(i), Attempt: 1}, "")
		}
		a, b := heard[wire.Lend](r, "a"), heard[wire.Lend](r, "b")
		if len(a) != 2 || len(b) != 2 {
			t.Errorf("lent %d and %d", len(a), len(b))
		}
	})
	t.Run("a loan is asked back when another bids, and goes to the best bid", func(t *testing.T) {
		r := newRig(t, 1)
		r.up("a", 1)
		loan := one(t, heard[wire.Lend](r, "a"))
		r.up("b", 1)
		r.gets("b", bid(0, 1))
		if got := one(t, heard[wire.Recall](r, "a")); got != wire.Recall(loan) {
			t.Fatalf("recalled %+v", got)
		}
		r.gets("a", wire.GiveBack(loan))
		claim := one(t, heard[wire.Claim](r, "b"))
		r.gets("b", wire.Offer{Claim: claim.ID, Task: task("x")})
		if len(r.runs) != 1 {
			t.Error("it does not run")
		}
	})
	t.Run("a loan that is not answered for is void after 50 ms", func(t *testing.T) {
		r := newRig(t, 1)
		r.up("a", 1)
		loan := one(t, heard[wire.Lend](r, "a"))
		r.up("b", 1)
		r.gets("b", bid(0, 1))
		r.pass(50 * time.Millisecond)
		one(t, heard[wire.Claim](r, "b"))
		r.gets("a", wire.Offer{Slot: loan.Slot, Seq: loan.Seq, Task: task("late")})
		if got := one(t, heard[wire.Refuse](r, "a")); got.Task != "late" {
			t.Errorf("got %+v", got)
		}
	})
	t.Run("an offer under way wins over the recall", func(t *testing.T) {
		r := newRig(t, 1)
		r.up("a", 1)
		loan := one(t, heard[wire.Lend](r, "a"))
		r.up("b", 1)
		r.gets("b", bid(0, 1))
		r.gets("a", wire.Offer{Slot: loan.Slot, Seq: loan.Seq, Task: task("x")})
		if len(r.runs) != 1 {
			t.Error("it does not run")
		}
	})
	t.Run("none voids the bid, and the next one is claimed", func(t *testing.T) {
		r := newRig(t, 1)
		r.up("a", 1)
		r.up("b", 1)
		loan := one(t, heard[wire.Lend](r, "a"))
		r.gets("a", wire.Offer{Slot: loan.Slot, Seq: loan.Seq, Task: task("x")})
		r.gets("a", bid(-1, 1))
		r.gets("b", bid(5, 1))
		ahead := one(t, heard[wire.Claim](r, "a"))
		if !ahead.Ahead {
			t.Error("not said to be ahead")
		}
		r.gets("a", wire.None{Claim: ahead.ID})
		ahead = one(t, heard[wire.Claim](r, "b"))
		r.gets("b", wire.Offer{Claim: ahead.ID, Task: task("y")})
		if !r.ahead[wire.Ref{Task: "y", Attempt: 1}] {
			t.Fatal("its inputs are not fetched")
		}
		r.end(wire.Ref{Task: "x", Attempt: 1}, "X")
		if _, ok := r.runs[wire.Ref{Task: "y", Attempt: 1}]; !ok {
			t.Error("what was ahead does not run")
		}
	})
	t.Run("at most one task is ahead of each executor", func(t *testing.T) {
		r := newRig(t, 2)
		r.up("a", 1)
		for i, l := range heard[wire.Lend](r, "a") {
			r.gets("a", wire.Offer{Slot: l.Slot, Seq: l.Seq, Task: task(fmt.Sprint(i))})
		}
		r.gets("a", bid(0, 10))
		claims := heard[wire.Claim](r, "a")
		for i, c := range claims {
			r.gets("a", wire.Offer{Claim: c.ID, Task: task(fmt.Sprint("ahead", i))})
		}
		if len(claims) != 2 || len(heard[wire.Claim](r, "a")) != 0 {
			t.Errorf("claimed %d", len(claims))
		}
	})
	t.Run("a silent scheduler is lent nothing", func(t *testing.T) {
		r := newRig(t, 1)
		r.up("a", 1)
		loan := one(t, heard[wire.Lend](r, "a"))
		r.gets("a", wire.Offer{Slot: loan.Slot, Seq: loan.Seq, Task: task("x")})
		r.pass(3 * time.Second)
		r.end(wire.Ref{Task: "x", Attempt: 1}, "X")
		if got := heard[wire.Lend](r, "a"); len(got) != 0 {
			t.Errorf("lent %+v", got)
		}
	})
}

func TestResults(t *testing.T) {
	x := wire.Ref{Task: "x", Attempt: 1}
	ran := func(t *testing.T) *rig {
		r := newRig(t, 1)
		r.up("a", 1)
		loan := one(t, heard[wire.Lend](r, "a"))
		r.gets("a", wire.Offer{Slot: loan.Slot, Seq: loan.Seq, Task: task("x")})
		return r
	}
	t.Run("the executor is lent again before the result is there", func(t *testing.T) {
		r := ran(t)
		r.c.Started(r.now, x)
		delete(r.runs, x)
		r.c.Freed(r.now, x)
		r.take()
		one(t, heard[wire.Lend](r, "a"))
		r.end(x, "X")
		if got := one(t, heard[wire.Done](r, "a")); string(got.Response) != "X" {
			t.Errorf("got %+v", got)
		}
	})
	t.Run("it is said again on reconnecting, until acknowledged", func(t *testing.T) {
		r := ran(t)
		r.down("a")
		r.end(x, "X")
		r.up("a", 1)
		one(t, heard[wire.Done](r, "a"))
		r.gets("a", wire.Ack{Ref: x})
		r.down("a")
		r.up("a", 1)
		if got := heard[wire.Done](r, "a"); len(got) != 0 {
			t.Errorf("got %+v", got)
		}
	})
	t.Run("it is kept for 5 minutes after that, for an heir", func(t *testing.T) {
		r := ran(t)
		r.end(x, "X")
		r.gets("a", wire.Ack{Ref: x})
		r.pass(299*time.Second, "a")
		r.down("a")
		r.up("b", 1)
		r.gets("b", wire.Own{Ref: x, From: "a"})
		one(t, heard[wire.Done](r, "b"))
		r.pass(time.Second)
		if got := r.c.Held(); len(got) != 0 {
			t.Errorf("still holds %+v", got)
		}
	})
	t.Run("an attempt passes to one heir only", func(t *testing.T) {
		r := ran(t)
		r.up("b", 1)
		r.up("c", 1)
		r.gets("b", wire.Own{Ref: x, From: "a"})
		r.gets("c", wire.Own{Ref: x, From: "a"})
		if got := one(t, heard[wire.Disowned](r, "c")); got.Owner != "b" {
			t.Errorf("got %+v", got)
		}
		r.end(x, "X")
		one(t, heard[wire.Done](r, "b"))
	})
	t.Run("an heir learns of a start that the former owner was told of", func(t *testing.T) {
		r := ran(t)
		r.c.Started(r.now, x)
		r.take()
		began := r.now
		r.up("b", 1)
		r.pass(time.Second, "a", "b")
		r.gets("b", wire.Own{Ref: x, From: "a"})
		if got := one(t, heard[wire.AttemptStarted](r, "b")); got.Ref != x || !got.At.Equal(began) {
			t.Errorf("got %+v", got)
		}
	})
	t.Run("what never began can be withdrawn, what began cannot", func(t *testing.T) {
		r := ran(t)
		r.gets("a", bid(0, 1))
		claim := one(t, heard[wire.Claim](r, "a"))
		r.gets("a", wire.Offer{Claim: claim.ID, Task: task("y")})
		r.gets("a", wire.Withdraw{Ref: x})
		r.gets("a", wire.Withdraw{Ref: wire.Ref{Task: "y", Attempt: 1}})
		if got := one(t, heard[wire.Withdrawn](r, "a")); got.Task != "y" {
			t.Errorf("got %+v", got)
		}
	})
	t.Run("a killed one is stopped, and says so", func(t *testing.T) {
		r := ran(t)
		r.gets("a", wire.Kill{Ref: x})
		if !r.stopped[x] {
			t.Error("it runs on")
		}
	})
}

func TestFences(t *testing.T) {
	r := newRig(t, 1)
	r.up("a", 1)
	loan := one(t, heard[wire.Lend](r, "a"))
	r.gets("a", wire.Offer{Slot: loan.Slot, Seq: loan.Seq, Task: task("x")})
	r.up("b", 1)
	r.gets("b", wire.Fence{Node: "a", Term: 1})
	inv := one(t, heard[wire.Inventory](r, "b"))
	if len(inv.Attempts) != 1 || inv.Attempts[0].Owner != "a" || inv.Of != "a" {
		t.Errorf("got %+v", inv)
	}
	if got := one(t, heard[wire.Fenced](r, "a")); got.Term != 1 {
		t.Errorf("got %+v", got)
	}
	r.gets("a", bid(-9, 1))
	r.gets("a", wire.Kill{Ref: wire.Ref{Task: "x", Attempt: 1}})
	r.gets("a", wire.Offer{Slot: loan.Slot, Seq: loan.Seq, Task: task("y")})
	if len(r.stopped) > 0 || len(r.runs) != 1 {
		t.Error("something was taken from a fenced term")
	}
	r.end(wire.Ref{Task: "x", Attempt: 1}, "X")
	if got := heard[wire.Lend](r, "a"); len(got) != 0 {
		t.Errorf("a fenced scheduler is lent %+v", got)
	}
	one(t, heard[wire.Lend](r, "b"))
	r.down("a")
	r.up("a", 2)
	r.gets("a", bid(0, 1))
	one(t, heard[wire.Recall](r, "b"))
}

// TestMachine checks that executors are never used twice nor forgotten, in
// whatever order things happen.
func TestMachine(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const executors = 3
		r := newRig(t, executors)
		ids := []string{"a", "b"}
		live := map[string]bool{}
		loans, claims := map[string][]wire.Lend{}, map[string][]wire.Claim{}
		n := 0
		collect := func() {
			for _, id := range ids {
				for _, m := range r.said[id] {
					switch m := m.(type) {
					case wire.Lend:
						loans[id] = append(loans[id], m)
					case wire.Claim:
						claims[id] = append(claims[id], m)
					case wire.Recall:
						if i := slices.Index(loans[id], wire.Lend(m)); i >= 0 {
							loans[id] = slices.Delete(loans[id], i, i+1)
							r.c.Received(r.now, id, r.session[id], wire.GiveBack(m))
						}
					}
				}
				r.said[id] = nil
			}
			r.take()
		}
		sched := func(t *rapid.T) string { return rapid.SampledFrom(ids).Draw(t, "scheduler") }
		t.Repeat(map[string]func(*rapid.T){
			"connect": func(t *rapid.T) {
				id := sched(t)
				loans[id], claims[id], live[id] = nil, nil, true
				r.said[id] = nil
				r.up(id, 1)
			},
			"break": func(t *rapid.T) {
				if id := sched(t); live[id] {
					live[id] = false
					r.down(id)
				}
			},
			"bid": func(t *rapid.T) {
				if id := sched(t); live[id] {
					r.gets(id, bid(rapid.Int32Range(-1, 1).Draw(t, "priority"), 2))
				}
			},
			"offer": func(t *rapid.T) {
				if id := sched(t); live[id] && len(loans[id]) > 0 {
					l := loans[id][0]
					loans[id] = loans[id][1:]
					n++
					r.gets(id, wire.Offer{Slot: l.Slot, Seq: l.Seq, Task: task(fmt.Sprint(n))})
				}
			},
			"answer": func(t *rapid.T) {
				if id := sched(t); live[id] && len(claims[id]) > 0 {
					c := claims[id][0]
					claims[id] = claims[id][1:]
					n++
					if rapid.Bool().Draw(t, "none") {
						r.gets(id, wire.None{Claim: c.ID})
					} else {
						r.gets(id, wire.Offer{Claim: c.ID, Task: task(fmt.Sprint(n))})
					}
				}
			},
			"finish": func(*rapid.T) {
				var first wire.Ref
				for ref := range r.runs {
					if first.Task == "" || ref.Task < first.Task {
						first = ref
					}
				}
				if first.Task != "" {
					r.end(first, "done")
				}
			},
			"tick": func(*rapid.T) {
				for _, id := range ids {
					if live[id] {
						r.gets(id, wire.SchedulerBeat{})
					}
				}
				r.pass(100 * time.Millisecond)
			},
			"": func(t *rapid.T) {
				collect()
				if got := r.c.Running(); got != len(r.runs) {
					t.Fatalf("%d executors are busy, but %d tasks run", got, len(r.runs))
				}
				if len(r.ahead) > executors {
					t.Fatalf("%d tasks are ahead", len(r.ahead))
				}
				if len(r.ahead) > 0 && len(r.runs) < executors {
					t.Fatal("a task waits beside an idle executor")
				}
			},
		})
	})
}
