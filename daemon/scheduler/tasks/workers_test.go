package tasks_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/match"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/operation"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/tasks"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/wire"
)

func TestLosingWorkers(t *testing.T) {
	// running is a rig with the task of waiter 1 started on w, and an idle spare.
	running := func(t *testing.T) (*rig, *wire.Task) {
		r := newRig(t)
		r.up("w")
		r.lend("w")
		r.submit(1, req("a"))
		task := r.offer("w")
		r.started("w", task)
		r.up("spare")
		r.lend("spare")
		return r, task
	}
	held := func(task *wire.Task, s wire.AttemptState) wire.Held {
		return wire.Held{Ref: task.Ref(), Owner: "s", State: s}
	}
	t.Run("it has 2 s to come back with its list", func(t *testing.T) {
		r, task := running(t)
		r.down("w")
		r.pass(1900*time.Millisecond, "spare")
		r.up("w", held(task, wire.Started))
		r.pass(5*time.Second, "w", "spare")
		if len(r.offers("spare")) > 0 {
			t.Error("the task was run again")
		}
		r.done("w", task, "A")
		r.wantResponse("A", 1)
	})
	t.Run("then the task runs elsewhere", func(t *testing.T) {
		r, task := running(t)
		r.down("w")
		r.pass(2*time.Second, "spare")
		if got := r.offer("spare"); got.ID != task.ID || got.Attempt != 2 {
			t.Errorf("got %+v", got)
		}
	})
	t.Run("at once when its port refuses", func(t *testing.T) {
		r, _ := running(t)
		r.down("w")
		r.c.WorkerGone(r.now, "w")
		r.take()
		r.offer("spare")
	})
	t.Run("at once when another start of it says hello", func(t *testing.T) {
		r, _ := running(t)
		r.upWith("w2", wire.WorkerHello{ID: "w2", Name: "w"})
		r.offer("spare")
	})
	t.Run("at once when it says good-bye, which counts for nothing", func(t *testing.T) {
		r, _ := running(t)
		r.says("w", wire.Bye{})
		r.offer("spare")
	})
	t.Run("silence without a break costs it its tasks after 10 s", func(t *testing.T) {
		r, _ := running(t)
		r.pass(9900*time.Millisecond, "spare")
		if len(r.offers("spare")) > 0 {
			t.Fatal("too early")
		}
		r.pass(100*time.Millisecond, "spare")
		r.offer("spare")
		if !slices.Equal(r.closed, []string{"w"}) {
			t.Errorf("closed %v", r.closed)
		}
	})
	t.Run("what it never got is placed again when it is back", func(t *testing.T) {
		r, task := running(t)
		r.down("w")
		r.up("w")
		if got := r.offer("spare"); got.ID != task.ID {
			t.Errorf("got %+v", got)
		}
	})
	t.Run("of two attempts the first result is taken, and the other killed", func(t *testing.T) {
		r, task := running(t)
		r.down("w")
		r.pass(2*time.Second, "spare")
		second := r.offer("spare")
		r.up("w", held(task, wire.Started))
		r.done("w", task, "first")
		r.wantResponse("first", 1)
		if want := (wire.Kill{Ref: second.Ref()}); !slices.Contains(r.told["spare"], wire.ToWorker(want)) {
			t.Errorf("told %+v", r.told["spare"])
		}
	})
	t.Run("a result that comes late is still the first", func(t *testing.T) {
		r, task := running(t)
		r.down("w")
		r.pass(2*time.Second, "spare")
		r.offer("spare")
		r.up("w", held(task, wire.Finished))
		r.done("w", task, "first")
		r.wantResponse("first", 1)
	})
	t.Run("an action that took three workers along is poison", func(t *testing.T) {
		r := newRig(t)
		r.submit(1, req("a"))
		r.submit(2, req("harmless"))
		for i := range 3 {
			w := fmt.Sprint("w", i)
			r.up(w)
			r.lend(w)
			r.started(w, r.offer(w))
			r.lend(w)
			r.offer(w) // harmless, and never started
			r.down(w)
			r.c.WorkerGone(r.now, w)
			r.take()
		}
		r.wantCode(1, codes.FailedPrecondition, "w0, w1, w2")
		r.submit(3, req("a"))
		r.wantCode(3, codes.FailedPrecondition, "w0, w1, w2")
		if r.heard[2][len(r.heard[2])-1].Done {
			t.Error("an action that did not start is blamed")
		}
		r.c.Detach(r.now, 2)
		r.pass(10 * time.Minute)
		r.submit(4, req("a"))
		if r.heard[4][0].Done {
			t.Error("remembered for more than 10 minutes")
		}
	})
	t.Run("trouble of the worker's own is tried elsewhere, five times", func(t *testing.T) {
		r, task := running(t)
		trouble := func(w string, task *wire.Task) {
			r.says(w, wire.Done{Ref: task.Ref(), Code: codes.Internal, Message: "disk on fire"})
			r.lend(w)
		}
		trouble("w", task)
		for _, w := range []string{"spare", "w", "spare"} {
			task = r.offer(w)
			r.pass(time.Second, "w", "spare")
			trouble(w, task)
		}
		r.says("w", wire.Done{Ref: r.offer("w").Ref(), Code: codes.Internal, Message: "disk on fire"})
		r.wantCode(1, codes.Internal, "disk on fire")
	})
}

func TestTakingOver(t *testing.T) {
	was := operation.Task{Key: req("a").Key(), Owner: "dead", Nonce: 5}
	held := wire.Held{Ref: wire.Ref{Task: was.String(), Attempt: 3}, Owner: "dead", State: wire.Started}
	t.Run("an attempt is found by the name it had, and by its key", func(t *testing.T) {
		r := newRig(t)
		r.up("w", held)
		r.c.Adopt(r.now, "w", held)
		r.take()
		if want := (wire.Own{Ref: held.Ref, From: "dead"}); r.told["w"][0] != want {
			t.Errorf("told %+v", r.told["w"])
		}
		name := operation.Name{Task: was, Op: 77}
		if !r.c.Attach(1, name, nil) {
			t.Fatal("unknown")
		}
		r.submit(2, req("a"))
		r.says("w", wire.Done{Ref: held.Ref, Response: []byte("A")})
		r.wantResponse("A", 1, 2)
		if got := r.heard[1][0].Name; got != name.String() {
			t.Errorf("its name changed to %q", got)
		}
	})
	t.Run("lost again, those with a request go on and the others ask anew", func(t *testing.T) {
		r := newRig(t)
		r.up("w", held)
		r.c.Adopt(r.now, "w", held)
		r.c.Attach(1, operation.Name{Task: was, Op: 77}, nil)
		r.down("w")
		r.pass(2 * time.Second)
		if !r.gone[1] {
			t.Error("the waiter heard nothing")
		}
		if s := r.c.Status(r.now); s.Queued+s.Executing > 0 {
			t.Errorf("left %+v", s)
		}
	})
	t.Run("what waits for the same key is not started", func(t *testing.T) {
		hold := true
		r := newRig(t)
		r.c = tasks.New(tasks.Config{
			Self: "s", Rules: match.DefaultRules(), MaxQueued: 9, FinishedBytes: 1 << 20,
			Hold: func(operation.Key) bool { return hold },
		})
		r.up("w", held)
		r.submit(1, req("a"))
		r.lend("w")
		if len(r.offers("w")) > 0 {
			t.Fatal("started while it was not known whether it runs")
		}
		r.c.Adopt(r.now, "w", held)
		hold = false
		r.c.Release(r.now)
		r.take()
		if len(r.offers("w")) > 0 {
			t.Fatal("started although it runs")
		}
		r.says("w", wire.Done{Ref: held.Ref, Response: []byte("A")})
		r.wantResponse("A", 1)
	})
}
