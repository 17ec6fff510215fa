package tasks_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/match"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/operation"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/tasks"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/wire"
)

// tester is a *testing.T or a *rapid.T.
type tester interface {
	Helper()
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Fatal(args ...any)
}

// rig is a core, what its workers were told and what its waiters heard.
type rig struct {
	t       tester
	c       *tasks.Core
	now     time.Time
	session map[string]uint64
	last    uint64
	told    map[string][]wire.ToWorker
	heard   map[tasks.Waiter][]wire.Update
	gone    map[tasks.Waiter]bool
	closed  []string
}

func newRig(t tester) *rig {
	return &rig{
		t: t, now: time.Unix(1_700_000_000, 0), session: map[string]uint64{}, told: map[string][]wire.ToWorker{},
		heard: map[tasks.Waiter][]wire.Update{}, gone: map[tasks.Waiter]bool{},
		c: tasks.New(tasks.Config{Self: "s", Rules: match.DefaultRules(), MaxQueued: 100, FinishedBytes: 1 << 20}),
	}
}

// take sorts the effects of the last event by whom they concern.
func (r *rig) take() {
	for _, e := range r.c.Take() {
		switch e := e.(type) {
		case tasks.Send:
			if e.Session != r.session[e.Worker] {
				r.t.Fatalf("%s is told %+v over a stream that ended", e.Worker, e.Msg)
			}
			r.told[e.Worker] = append(r.told[e.Worker], e.Msg)
		case tasks.Notify:
			if us := r.heard[e.Waiter]; r.gone[e.Waiter] || len(us) > 0 && us[len(us)-1].Done {
				r.t.Fatalf("waiter %d hears more after the last update: %+v", e.Waiter, e.Update)
			}
			r.gone[e.Waiter] = e.Gone
			r.heard[e.Waiter] = append(r.heard[e.Waiter], e.Update)
		case tasks.Close:
			r.closed = append(r.closed, e.Worker)
		}
	}
}

func (r *rig) up(name string, held ...wire.Held) {
	r.upWith(name, wire.WorkerHello{ID: name, Name: name, Executors: 1, Attempts: held})
}

func (r *rig) upWith(name string, h wire.WorkerHello) {
	r.last++
	r.session[name] = r.last
	r.c.WorkerUp(r.now, r.last, h)
	r.take()
}

func (r *rig) down(name string) {
	r.c.WorkerDown(r.now, name, r.session[name])
	r.take()
}

func (r *rig) says(name string, m wire.FromWorker) {
	r.c.FromWorker(r.now, name, r.session[name], m)
	r.take()
}

func (r *rig) lend(name string) {
	r.last++
	r.says(name, wire.Lend{Seq: r.last})
}

// pass lets time pass, in which the workers named say that they live.
func (r *rig) pass(d time.Duration, alive ...string) {
	const step = 100 * time.Millisecond
	for ; d > 0; d -= step {
		r.now = r.now.Add(min(d, step))
		for _, name := range alive {
			r.says(name, wire.WorkerBeat{})
		}
		r.c.Tick(r.now)
		r.take()
	}
}

func req(name string) *wire.Request {
	return &wire.Request{Action: digest.Of(digest.SHA256, []byte(name)), Principal: "p", Invocation: "i"}
}

func (r *rig) submit(w tasks.Waiter, q *wire.Request) {
	r.c.Submit(r.now, w, uint64(w)+1000, q)
	r.take()
}

// offers returns what a worker was given to do, and forgets it.
func (r *rig) offers(name string) (ts []*wire.Task) {
	for _, m := range r.told[name] {
		if o, ok := m.(wire.Offer); ok {
			ts = append(ts, o.Task)
		}
	}
	r.told[name] = nil
	return ts
}

// offer is the one task that the worker was given.
func (r *rig) offer(name string) *wire.Task {
	r.t.Helper()
	ts := r.offers(name)
	if len(ts) != 1 {
		r.t.Fatalf("%s was given %d tasks", name, len(ts))
	}
	return ts[0]
}

func (r *rig) started(name string, t *wire.Task) {
	r.says(name, wire.AttemptStarted{Ref: t.Ref(), At: r.now})
}

func (r *rig) done(name string, t *wire.Task, response string) {
	r.says(name, wire.Done{Ref: t.Ref(), Response: []byte(response)})
}

// end is the waiter's final update.
func (r *rig) end(w tasks.Waiter) wire.Update {
	r.t.Helper()
	us := r.heard[w]
	if len(us) == 0 || !us[len(us)-1].Done {
		r.t.Fatalf("waiter %d has no final update, but %+v", w, us)
	}
	return us[len(us)-1]
}

func (r *rig) wantCode(w tasks.Waiter, code codes.Code, text string) {
	r.t.Helper()
	var e *wire.Error
	if u := r.end(w); !errors.As(u.Err, &e) || e.Status != code || !strings.Contains(e.Text, text) {
		r.t.Errorf("waiter %d got %v, want %v: %s", w, u.Err, code, text)
	}
}

func (r *rig) wantResponse(response string, ws ...tasks.Waiter) {
	r.t.Helper()
	for _, w := range ws {
		if u := r.end(w); string(u.Response) != response || u.Err != nil || u.Stage != wire.Completed {
			r.t.Errorf("waiter %d got %+v, want %q", w, u, response)
		}
	}
}

func (r *rig) name(w tasks.Waiter) operation.Name {
	r.t.Helper()
	n, err := operation.Parse(r.heard[w][0].Name)
	if err != nil {
		r.t.Fatal(err)
	}
	return n
}

func TestMerging(t *testing.T) {
	r := newRig(t)
	r.submit(1, req("a"))
	r.submit(2, req("a"))
	other := req("a")
	other.Scope = "someone else's"
	r.submit(3, other)
	tenant := req("a")
	tenant.Instance = "tenant"
	r.submit(4, tenant)
	fresh := req("a")
	fresh.DoNotCache = true
	r.submit(5, fresh)
	if got := r.c.Status(r.now).Queued; got != 4 {
		t.Fatalf("%d tasks wait, want one for calls 1 and 2, and one for each other", got)
	}
	if r.name(1).Task != r.name(2).Task || r.name(1) == r.name(2) {
		t.Errorf("merged calls are named %v and %v", r.name(1), r.name(2))
	}
	r.up("w")
	r.lend("w")
	r.done("w", r.offer("w"), "A")
	r.wantResponse("A", 1, 2)
	r.submit(6, req("a"))
	if u := r.heard[6][0]; u.Done {
		t.Error("a finished operation answered a new Execute")
	}
}

func TestWaiters(t *testing.T) {
	t.Run("cancelling one of two leaves the task, the last one's kills", func(t *testing.T) {
		r := newRig(t)
		r.up("w")
		r.lend("w")
		r.submit(1, req("a"))
		r.submit(2, req("a"))
		task := r.offer("w")
		r.started("w", task)
		r.c.Cancel(r.now, r.name(1))
		r.take()
		r.wantCode(1, codes.Canceled, "cancelled")
		if len(r.told["w"]) > 0 {
			t.Fatalf("the worker is told %+v", r.told["w"])
		}
		r.c.Cancel(r.now, r.name(2))
		r.take()
		r.wantCode(2, codes.Canceled, "cancelled")
		if want := (wire.Kill{Ref: task.Ref()}); !slices.Contains(r.told["w"], wire.ToWorker(want)) {
			t.Errorf("the worker is told %+v", r.told["w"])
		}
		r.says("w", wire.Done{Ref: task.Ref(), Code: codes.Canceled})
		if s := r.c.Status(r.now); s.Executing+s.Queued != 0 {
			t.Errorf("left: %+v", s)
		}
	})
	t.Run("a lost stream only detaches, and 60 s later the task is dropped", func(t *testing.T) {
		r := newRig(t)
		r.submit(1, req("a"))
		r.c.Detach(r.now, 1)
		r.pass(59 * time.Second)
		if !r.c.Attach(2, r.name(1), nil) {
			t.Fatal("gone after 59 s")
		}
		r.pass(90 * time.Second)
		r.c.Detach(r.now, 2)
		r.pass(60 * time.Second)
		if r.c.Has(r.name(1).Task.String()) {
			t.Error("still there")
		}
	})
	t.Run("a running task that nobody waits for is killed", func(t *testing.T) {
		r := newRig(t)
		r.up("w")
		r.lend("w")
		r.submit(1, req("a"))
		task := r.offer("w")
		r.started("w", task)
		r.c.Detach(r.now, 1)
		r.pass(60*time.Second, "w")
		if want := (wire.Kill{Ref: task.Ref()}); !slices.Contains(r.told["w"], wire.ToWorker(want)) {
			t.Errorf("the worker is told %+v", r.told["w"])
		}
	})
	t.Run("results answer by name for 5 minutes", func(t *testing.T) {
		r := newRig(t)
		r.up("w")
		r.lend("w")
		r.submit(1, req("a"))
		r.done("w", r.offer("w"), "A")
		r.pass(299*time.Second, "w")
		r.c.Attach(2, r.name(1), nil)
		r.take()
		r.wantResponse("A", 2)
		r.pass(time.Second, "w")
		if r.c.Attach(3, r.name(1), nil) {
			t.Error("still known after 5 minutes")
		}
	})
	t.Run("a task is as urgent as its most urgent waiter", func(t *testing.T) {
		r := newRig(t)
		late, first := req("late"), req("first")
		late.Priority = 5
		r.submit(1, late)
		r.submit(2, first)
		hurry := *late
		hurry.Priority = -1
		r.submit(3, &hurry)
		r.c.Detach(r.now, 2)
		r.up("w")
		r.lend("w")
		if got := r.offer("w"); got.Action != late.Action {
			t.Error("the other went first")
		}
	})
	t.Run("running is told at the next tick, and not of what has ended by then", func(t *testing.T) {
		r := newRig(t)
		r.up("w")
		for i := range tasks.Waiter(2) {
			r.lend("w")
			r.submit(1+i, req(fmt.Sprint(i)))
			task := r.offer("w")
			r.started("w", task)
			if i == 0 {
				r.pass(100*time.Millisecond, "w")
			}
			r.done("w", task, "A")
		}
		if a, b := len(r.heard[1]), len(r.heard[2]); a != 3 || b != 2 {
			t.Errorf("heard %d and %d updates", a, b)
		}
	})
}

func TestLimits(t *testing.T) {
	r := newRig(t)
	for i := range tasks.Waiter(101) {
		r.submit(i, req(fmt.Sprint(i)))
	}
	r.wantCode(100, codes.ResourceExhausted, "100 actions wait")
	r.submit(200, req("0")) // joins
	if r.heard[200][0].Done {
		t.Error("a call that adds no task is refused")
	}
}

func TestPlatforms(t *testing.T) {
	gpu := func() *wire.Request {
		q := req("a")
		q.Platform = []match.Property{{Name: "gpu", Value: "yes"}}
		return q
	}
	t.Run("nothing is judged before all workers were heard", func(t *testing.T) {
		r := newRig(t)
		r.up("w")
		r.submit(1, gpu())
		r.pass(time.Minute, "w")
		if r.heard[1][0].Done {
			t.Fatal("judged")
		}
		r.c.Judge(r.now, true)
		r.take()
		r.wantCode(1, codes.FailedPrecondition, "gpu=yes")
		r.submit(2, gpu())
		r.wantCode(2, codes.FailedPrecondition, "gpu=yes")
	})
	t.Run("a pool that was seen within 15 minutes counts as there", func(t *testing.T) {
		r := newRig(t)
		r.upWith("g", wire.WorkerHello{ID: "g", Name: "g", Pool: "g", Properties: map[string][]string{"gpu": {"yes"}}})
		r.down("g")
		r.c.Judge(r.now, true)
		r.submit(1, gpu())
		r.pass(14 * time.Minute)
		if r.heard[1][0].Done {
			t.Fatal("judged too early")
		}
		r.pass(2 * time.Minute)
		r.wantCode(1, codes.FailedPrecondition, "gpu=yes")
	})
	t.Run("a pool that may be empty counts as there", func(t *testing.T) {
		r := newRig(t)
		pool := match.NewProfile("g", map[string][]string{"gpu": {"yes"}})
		r.c = tasks.New(tasks.Config{Self: "s", Rules: match.DefaultRules(), MaxQueued: 100, FinishedBytes: 1 << 20, Declared: []*match.Profile{pool}})
		r.up("w")
		r.c.Judge(r.now, true)
		r.submit(1, gpu())
		r.pass(time.Hour, "w")
		if r.heard[1][0].Done {
			t.Fatal("judged")
		}
	})
	t.Run("without any worker it is unavailable", func(t *testing.T) {
		r := newRig(t)
		r.c.Judge(r.now, true)
		r.submit(1, req("a"))
		r.wantCode(1, codes.Unavailable, "no worker")
	})
}

func TestPlacing(t *testing.T) {
	t.Run("a loan is used once, and not after it was recalled", func(t *testing.T) {
		r := newRig(t)
		r.up("w")
		r.says("w", wire.Lend{Slot: 0, Seq: 7})
		r.says("w", wire.Recall{Slot: 0, Seq: 7})
		r.submit(1, req("a"))
		if r.says("w", wire.Lend{Slot: 0, Seq: 8}); r.told["w"][0] != (wire.GiveBack{Slot: 0, Seq: 7}) {
			t.Errorf("told %+v", r.told["w"])
		}
		r.submit(2, req("b"))
		r.offer("w")
		r.says("w", wire.Recall{Slot: 0, Seq: 8})
		if len(r.told["w"]) > 0 {
			t.Errorf("told %+v: the offer is the answer", r.told["w"])
		}
	})
	t.Run("without a loan it bids, and answers claims with the best task", func(t *testing.T) {
		r := newRig(t)
		r.up("w")
		r.submit(1, req("a"))
		if b, ok := r.told["w"][0].(wire.Bid); !ok || b.Want != 1 {
			t.Fatalf("told %+v", r.told["w"])
		}
		urgent := req("b")
		urgent.Priority = -3
		r.submit(2, urgent)
		r.pass(100*time.Millisecond, "w")
		if b, ok := r.told["w"][1].(wire.Bid); !ok || b.Priority != -3 || b.Want != 2 {
			t.Fatalf("told %+v", r.told["w"])
		}
		r.says("w", wire.Claim{ID: 1})
		if got := r.offer("w"); got.Action != urgent.Action {
			t.Error("the less urgent one")
		}
		r.says("w", wire.Claim{ID: 2, Ahead: true})
		r.offer("w")
		r.says("w", wire.Claim{ID: 3, Ahead: true})
		if got := r.told["w"]; len(got) != 1 || got[0] != (wire.None{Claim: 3}) {
			t.Errorf("told %+v", got)
		}
	})
	t.Run("a bid that was void before its claim was answered is made again", func(t *testing.T) {
		r := newRig(t)
		r.up("w")
		r.submit(1, req("a"))
		r.offers("w")
		r.says("w", wire.Claim{ID: 1})
		late := r.offer("w") // the worker has given the claim up, and the bid with it
		r.says("w", wire.Refuse{Ref: late.Ref()})
		r.pass(100*time.Millisecond, "w")
		if got := r.told["w"]; len(got) != 1 || got[0].(wire.Bid).Want != 1 {
			t.Errorf("told %+v", got)
		}
	})
	t.Run("an idle worker gets what waits behind another's executor", func(t *testing.T) {
		r := newRig(t)
		r.up("w")
		r.submit(1, req("a"))
		r.says("w", wire.Claim{ID: 1, Ahead: true})
		task := r.offer("w")
		r.up("idle")
		r.lend("idle")
		if got := r.told["w"]; len(got) != 1 || got[0] != (wire.Withdraw{Ref: task.Ref()}) {
			t.Fatalf("told %+v", got)
		}
		r.says("w", wire.Withdrawn{Ref: task.Ref()})
		if got := r.offer("idle"); got.ID != task.ID || got.Attempt != 2 {
			t.Errorf("got %+v", got)
		}
	})
	t.Run("a silent worker gets nothing new", func(t *testing.T) {
		r := newRig(t)
		r.up("w")
		r.lend("w")
		r.pass(3 * time.Second)
		r.submit(1, req("a"))
		if len(r.offers("w")) > 0 {
			t.Fatal("it did")
		}
		r.says("w", wire.WorkerBeat{})
		r.pass(100*time.Millisecond, "w")
		r.offer("w")
	})
	t.Run("most bytes of the inputs go before the first output", func(t *testing.T) {
		for _, want := range []string{"w0", "w1", "w2"} {
			r := newRig(t)
			for i := range 3 {
				r.up(fmt.Sprint("w", i))
				r.lend(fmt.Sprint("w", i))
			}
			q := req("a")
			q.FirstOutput = "bin/app"
			q.Near = []wire.Near{{Worker: "busy", Bytes: 300}, {Worker: want, Bytes: 200}}
			for i := range 3 {
				if w := fmt.Sprint("w", i); w != want {
					q.Near = append(q.Near, wire.Near{Worker: w, Bytes: 100})
				}
			}
			r.submit(1, q)
			r.offer(want)
		}
	})
	t.Run("the same first output goes to the same worker", func(t *testing.T) {
		at := map[string]bool{}
		for range 5 {
			r := newRig(t)
			for i := range 5 {
				r.up(fmt.Sprint("w", i))
				r.lend(fmt.Sprint("w", i))
			}
			q := req("a")
			q.FirstOutput = "bin/app"
			r.submit(1, q)
			for i := range 5 {
				if len(r.offers(fmt.Sprint("w", i))) > 0 {
					at[fmt.Sprint("w", i)] = true
				}
			}
		}
		if len(at) != 1 {
			t.Errorf("it went to %v", at)
		}
	})
}

func TestStatusTellsWaitingFromRunning(t *testing.T) {
	r := newRig(t)
	r.up("w")
	r.lend("w")
	r.submit(1, req("a"))
	a := r.offer("w")
	r.started("w", a)
	r.submit(2, req("b"))
	r.submit(3, req("c"))
	r.says("w", wire.Claim{ID: 1, Ahead: true})
	r.offer("w") // which waits on the worker
	if s := r.c.Status(r.now); s.Executing != 1 || s.Placed != 1 || s.Queued != 1 {
		t.Errorf("%d run, %d are placed and %d wait", s.Executing, s.Placed, s.Queued)
	}
	r.done("w", a, "")
	if s := r.c.Status(r.now); s.Executing != 0 || s.Placed != 1 || s.Queued != 1 {
		t.Errorf("after the end %d run, %d are placed and %d wait", s.Executing, s.Placed, s.Queued)
	}
}
