package tasks_test

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/match"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/tasks"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/wire"
)

// BenchmarkQueued says what a waiting task takes beyond its request.
func BenchmarkQueued(b *testing.B) {
	const n = 50_000
	reqs := make([]*wire.Request, n)
	for i := range reqs {
		reqs[i] = &wire.Request{Action: digest.Of(digest.SHA256, fmt.Append(nil, i)), Principal: "p", Invocation: "i"}
	}
	for b.Loop() {
		c := tasks.New(tasks.Config{Self: "scheduler-1-18c2f0", Rules: match.DefaultRules(), MaxQueued: n, FinishedBytes: 1})
		now := newRig(b).now
		before := heap()
		for i, q := range reqs {
			c.Submit(now, tasks.Waiter(i), uint64(i), q)
			c.Take()
		}
		b.ReportMetric(float64(heap()-before)/n, "B/task")
		runtime.KeepAlive(c)
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkLoan is a task from its submission over a lent slot to its result.
func BenchmarkLoan(b *testing.B) {
	r := newRig(b)
	r.up("w")
	q := req("a")
	b.ReportAllocs()
	session := r.session["w"]
	for i := 0; b.Loop(); i++ {
		r.c.FromWorker(r.now, "w", session, wire.Lend{Seq: uint64(i)})
		r.c.Submit(r.now, tasks.Waiter(i), uint64(i), q)
		for _, e := range r.c.Take() {
			if s, ok := e.(tasks.Send); ok {
				if o, ok := s.Msg.(wire.Offer); ok {
					r.c.FromWorker(r.now, "w", session, wire.Done{Ref: o.Task.Ref()})
				}
			}
		}
		r.c.Take()
	}
}
