package tasks_test

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"pgregory.net/rapid"

	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/operation"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/tasks"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/wire"
)

// model is what workers have been given, as they see it.
type model struct {
	*rig
	up      map[string]bool
	loans   map[string]map[uint64]bool // by worker
	claims  map[string]map[uint64]bool
	has     map[string]map[wire.Ref]*attempt
	calls   map[tasks.Waiter]operation.Name
	waiting map[tasks.Waiter]bool
}

type attempt struct {
	action  digest.Digest
	task    string
	started bool
	killed  bool
}

var names = []string{"w0", "w1", "w2"}

func newModel(t tester) *model {
	m := &model{
		rig: newRig(t), up: map[string]bool{}, loans: map[string]map[uint64]bool{}, claims: map[string]map[uint64]bool{},
		has: map[string]map[wire.Ref]*attempt{}, calls: map[tasks.Waiter]operation.Name{}, waiting: map[tasks.Waiter]bool{},
	}
	for _, w := range names {
		m.has[w] = map[wire.Ref]*attempt{}
		m.connect(w)
	}
	return m
}

func (m *model) connect(w string) {
	var held []wire.Held
	for ref, a := range m.has[w] {
		s := wire.Accepted
		if a.started {
			s = wire.Started
		}
		held = append(held, wire.Held{Ref: ref, Owner: "s", State: s})
	}
	m.up[w], m.loans[w], m.claims[w] = true, map[uint64]bool{}, map[uint64]bool{}
	m.rig.up(w, held...)
	m.react()
}

// react makes the workers do as they were told, and checks that it is right.
func (m *model) react() {
	for again := true; again; {
		again = false
		for _, w := range names {
			told := m.told[w]
			m.told[w] = nil
			for _, msg := range told {
				again = true
				switch msg := msg.(type) {
				case wire.Offer:
					m.take(w, msg)
				case wire.None:
					delete(m.claims[w], msg.Claim)
				case wire.GiveBack:
					delete(m.loans[w], msg.Seq)
				case wire.Kill:
					if a := m.has[w][msg.Ref]; a != nil {
						a.killed = true
					}
				case wire.Withdraw:
					if a := m.has[w][msg.Ref]; a != nil && !a.started {
						delete(m.has[w], msg.Ref)
						m.says(w, wire.Withdrawn{Ref: msg.Ref})
					}
				}
			}
		}
	}
}

func (m *model) take(w string, o wire.Offer) {
	slot := m.loans[w]
	seq := o.Seq
	if o.Claim != 0 {
		slot, seq = m.claims[w], o.Claim
	}
	if !slot[seq] {
		m.t.Fatalf("%s is given %s for a loan or claim that is not open", w, o.Task.ID)
	}
	delete(slot, seq)
	for _, other := range names {
		for ref, a := range m.has[other] {
			if m.up[other] && !a.killed && ref.Task == o.Task.ID {
				m.t.Fatalf("%s is given %s, which %s has and can be reached", w, o.Task.ID, other)
			}
		}
	}
	m.has[w][o.Task.Ref()] = &attempt{action: o.Task.Action, task: o.Task.ID}
}

// pick is one of w's attempts, nil if it has none.
func (m *model) pick(t *rapid.T, w string) (wire.Ref, *attempt) {
	refs := make([]wire.Ref, 0, len(m.has[w]))
	for ref := range m.has[w] {
		refs = append(refs, ref)
	}
	if len(refs) == 0 {
		return wire.Ref{}, nil
	}
	// The order of a map must not be drawn from.
	best := refs[0]
	for _, r := range refs {
		if fmt.Sprint(r) < fmt.Sprint(best) {
			best = r
		}
	}
	return best, m.has[w][best]
}

func (m *model) result(w string, ref wire.Ref, code codes.Code) {
	a := m.has[w][ref]
	delete(m.has[w], ref)
	m.says(w, wire.Done{Ref: ref, Response: []byte(a.action.Hash()), Code: code})
	m.react()
}

func TestMachine(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newModel(t)
		var last tasks.Waiter
		worker := func(t *rapid.T) string { return rapid.SampledFrom(names).Draw(t, "worker") }
		caller := func(t *rapid.T) tasks.Waiter {
			if last == 0 {
				return 0
			}
			return tasks.Waiter(rapid.Uint64Range(1, uint64(last)).Draw(t, "waiter"))
		}
		t.Repeat(map[string]func(*rapid.T){
			"submit": func(t *rapid.T) {
				last++
				q := req(rapid.SampledFrom([]string{"a", "b", "c", "d", "e"}).Draw(t, "action"))
				q.DoNotCache = rapid.IntRange(0, 5).Draw(t, "cache") == 0
				q.Priority = rapid.Int32Range(-1, 1).Draw(t, "priority")
				m.submit(last, q)
				m.calls[last], m.waiting[last] = m.name(last), true
				m.react()
			},
			"detach": func(t *rapid.T) {
				w := caller(t)
				m.c.Detach(m.now, w)
				delete(m.waiting, w)
				m.settle()
			},
			"cancel": func(t *rapid.T) {
				if w := caller(t); w != 0 {
					m.c.Cancel(m.now, m.calls[w])
					m.settle()
				}
			},
			"lend": func(t *rapid.T) {
				if w := worker(t); m.up[w] {
					m.last++
					m.loans[w][m.last] = true
					m.says(w, wire.Lend{Seq: m.last})
					m.react()
				}
			},
			"recall": func(t *rapid.T) {
				w := worker(t)
				for seq := range m.loans[w] {
					if m.up[w] && len(m.loans[w]) == 1 {
						m.says(w, wire.Recall{Seq: seq})
						m.react()
					}
				}
			},
			"claim": func(t *rapid.T) {
				if w := worker(t); m.up[w] {
					m.last++
					m.claims[w][m.last] = true
					m.says(w, wire.Claim{ID: m.last, Ahead: rapid.Bool().Draw(t, "ahead")})
					m.react()
				}
			},
			"start": func(t *rapid.T) {
				w := worker(t)
				if ref, a := m.pick(t, w); a != nil && !a.started && m.up[w] {
					a.started = true
					m.says(w, wire.AttemptStarted{Ref: ref, At: m.now})
				}
			},
			"finish": func(t *rapid.T) {
				w := worker(t)
				if ref, a := m.pick(t, w); a != nil && m.up[w] {
					m.result(w, ref, rapid.SampledFrom([]codes.Code{codes.OK, codes.OK, codes.OK, codes.Internal}).Draw(t, "code"))
				}
			},
			"break": func(t *rapid.T) {
				if w := worker(t); m.up[w] {
					m.up[w] = false
					m.down(w)
					m.react()
				}
			},
			"come back": func(t *rapid.T) {
				if w := worker(t); !m.up[w] {
					m.connect(w)
				}
			},
			"die": func(t *rapid.T) {
				w := worker(t)
				if m.up[w] {
					m.down(w)
				}
				m.up[w] = false
				clear(m.has[w])
				m.c.WorkerGone(m.now, w)
				m.settle()
			},
			"tick": func(t *rapid.T) {
				d := time.Duration(rapid.IntRange(1, 3000).Draw(t, "ms")) * time.Millisecond
				m.now = m.now.Add(d)
				for _, w := range names {
					if m.up[w] {
						m.says(w, wire.WorkerBeat{})
					}
				}
				m.c.Tick(m.now)
				m.settle()
			},
		})
		m.drain()
	})
}

// settle hands out what the last event brought about, and lets workers react.
func (m *model) settle() {
	m.rig.take()
	m.react()
}

// drain brings the workers back and lets them do whatever waits.
func (m *model) drain() {
	for _, w := range names {
		if !m.up[w] {
			m.connect(w)
		}
	}
	for range 200 {
		for _, w := range names {
			for ref := range m.has[w] {
				code := codes.OK
				if m.has[w][ref].killed {
					code = codes.Canceled
				}
				m.result(w, ref, code)
			}
			m.last++
			m.claims[w][m.last] = true
			m.says(w, wire.Claim{ID: m.last})
			m.react()
		}
		m.pass(100*time.Millisecond, names...)
		m.react()
	}
	if s := m.c.Status(m.now); s.Queued+s.Executing != 0 {
		m.t.Fatalf("left after all is done: %+v", s)
	}
	for w := range m.waiting {
		if us := m.heard[w]; !m.gone[w] && !us[len(us)-1].Done {
			m.t.Fatalf("waiter %d was never answered: %+v", w, us)
		}
	}
}
