package queue_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/queue"
)

type item = queue.Item[string]

var epoch = time.Unix(1_000_000, 0)

func all(string) bool { return true }

// serve takes items until none waits; each runs for d while nothing else does.
func serve(q *queue.Queue[string], now time.Time, d time.Duration) (order []string) {
	for {
		it := q.Best(now, all, nil)
		if it == nil {
			return order
		}
		q.Remove(it)
		q.Start(it, now)
		started := now
		now = now.Add(d)
		q.Stop(it, started, now)
		order = append(order, it.Value)
	}
}

func TestOrder(t *testing.T) {
	var seq uint64
	mk := func(name, principal, invocation string, priority int32) *item {
		seq++
		return &item{Value: name, Principal: principal, Invocation: invocation, Priority: priority, Seq: seq, Arrived: epoch}
	}
	for _, c := range []struct {
		name string
		in   []*item
		want []string
	}{
		{"arrival within a class", []*item{mk("a", "p", "i", 0), mk("b", "p", "i", 0), mk("c", "p", "i", 0)}, []string{"a", "b", "c"}},
		{"lower priority values first", []*item{mk("a", "p", "i", 5), mk("b", "p", "i", -5), mk("c", "p", "i", 0)}, []string{"b", "c", "a"}},
		{
			"principals take turns, however many tasks each has",
			[]*item{mk("a1", "a", "i", 0), mk("a2", "a", "i", 0), mk("a3", "a", "i", 0), mk("b1", "b", "i", 0), mk("b2", "b", "i", 0)},
			[]string{"a1", "b1", "a2", "b2", "a3"},
		},
		{
			"invocations of a principal take turns within its share",
			[]*item{mk("x1", "a", "x", 0), mk("x2", "a", "x", 0), mk("y1", "a", "y", 0), mk("b1", "b", "z", 0), mk("b2", "b", "z", 0), mk("b3", "b", "z", 0)},
			[]string{"x1", "b1", "y1", "b2", "x2", "b3"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			var q queue.Queue[string]
			for _, it := range c.in {
				q.Push(it, epoch)
			}
			if got := serve(&q, epoch, time.Second); !slices.Equal(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

func TestQueue(t *testing.T) {
	t.Run("a requeued task takes its old place", func(t *testing.T) {
		var q queue.Queue[string]
		its := make([]*item, 3)
		for i := range its {
			its[i] = &item{Value: fmt.Sprint(i), Seq: uint64(i), Arrived: epoch}
			q.Push(its[i], epoch)
		}
		q.Remove(its[1])
		q.Push(its[1], epoch)
		if got := serve(&q, epoch, time.Second); !slices.Equal(got, []string{"0", "1", "2"}) {
			t.Errorf("got %v", got)
		}
	})
	t.Run("who was idle saved nothing up", func(t *testing.T) {
		var q queue.Queue[string]
		a := &item{Value: "a", Principal: "a"}
		q.Start(a, epoch)
		now := epoch.Add(time.Hour)
		for i := range 6 {
			q.Push(&item{Value: "b", Principal: "b", Seq: uint64(i)}, now)
			q.Push(&item{Value: "c", Principal: "c", Seq: uint64(10 + i)}, now)
		}
		if got := serve(&q, now, time.Second)[:4]; !slices.Equal(got, []string{"b", "c", "b", "c"}) {
			t.Errorf("got %v", got)
		}
	})
	t.Run("a worker is shown only what fits, and not what it should avoid", func(t *testing.T) {
		var q queue.Queue[string]
		q.Push(&item{Value: "gpu", Platform: "gpu", Seq: 1}, epoch)
		q.Push(&item{Value: "avoid", Seq: 2}, epoch)
		q.Push(&item{Value: "cpu", Seq: 3}, epoch)
		it := q.Best(epoch, func(p string) bool { return p == "" }, func(it *item) bool { return it.Value == "avoid" })
		if it == nil || it.Value != "cpu" {
			t.Errorf("got %v", it)
		}
	})
}

// TestModel holds the queue against a list that is searched.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var q queue.Queue[string]
		in := map[*item]bool{}
		seq := uint64(0)
		t.Repeat(map[string]func(*rapid.T){
			"push": func(t *rapid.T) {
				seq++
				it := &item{
					Platform: rapid.SampledFrom([]string{"", "x"}).Draw(t, "platform"),
					Priority: rapid.Int32Range(-1, 1).Draw(t, "priority"),
					Seq:      seq, Arrived: epoch,
				}
				q.Push(it, epoch)
				in[it] = true
			},
			"remove": func(t *rapid.T) {
				if it := q.Best(epoch, all, nil); it != nil {
					q.Remove(it)
					delete(in, it)
				}
			},
			"": func(t *rapid.T) {
				if q.Len() != len(in) {
					t.Fatalf("%d wait, want %d", q.Len(), len(in))
				}
				var want *item
				for it := range in {
					if want == nil || it.Priority < want.Priority || it.Priority == want.Priority && it.Seq < want.Seq {
						want = it
					}
				}
				if got := q.Best(epoch, all, nil); got != want {
					t.Fatalf("got %v, want %v", got, want)
				}
			},
		})
	})
}
