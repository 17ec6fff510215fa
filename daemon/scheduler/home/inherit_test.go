package home_test

import (
	"testing"
	"time"

	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/home"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/match"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/operation"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/tasks"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/wire"
)

// heir is a scheduler with a peer and the workers a and b. It has more slots
// than tasks: what waits is held.
type heir struct {
	c       *home.Core
	now     time.Time
	session uint64
	peers   map[string][2]uint64 // sessions of the streams to them and from them
	worker  map[string]uint64
}

const tasksAsked = 20

func newHeir() *heir {
	h := &heir{now: epoch, peers: map[string][2]uint64{}, worker: map[string]uint64{}}
	h.c = home.New(h.now, tasks.Config{Self: "s", Rules: match.DefaultRules(), MaxQueued: 100, FinishedBytes: 1 << 20})
	h.c.View(h.now, []string{"s", "peer"}, []string{"a", "b"})
	h.up("peer", 1)
	for _, id := range []string{"a", "b"} {
		h.session++
		h.worker[id] = h.session
		h.c.WorkerUp(h.now, h.session, wire.WorkerHello{ID: id, Name: id, Executors: tasksAsked})
	}
	for range 20 { // until it knows that nothing ran before it began
		h.now = h.now.Add(100 * time.Millisecond)
		h.c.FromOwner(h.now, "peer", h.peers["peer"][0], wire.OwnerBeat{})
		h.c.Tick(h.now)
	}
	for i := range uint32(tasksAsked) {
		h.c.FromWorker(h.now, "a", h.worker["a"], wire.Lend{Slot: i, Seq: uint64(i)})
	}
	return h
}

func (h *heir) up(id string, term uint64) {
	h.session += 2
	h.peers[id] = [2]uint64{h.session - 1, h.session}
	h.c.PeerUp(h.now, id, h.session-1, term)
	h.c.CallerUp(h.now, h.session, wire.CallerHello{ID: id, Term: term})
	h.c.FromCaller(h.now, id, h.session, wire.Keeps{})
}

func (h *heir) dies(id string) {
	h.c.PeerDown(h.now, id, h.peers[id][0])
	h.c.CallerDown(h.now, id, h.peers[id][1])
	h.c.PeerRefused(h.now, id)
}

// held asks for actions, some of which the peer may have had, and returns how
// many are held.
func (h *heir) held() int {
	for i := range uint64(tasksAsked) {
		h.c.Execute(h.now, i, i, request(int(i)))
	}
	return h.waiting()
}

// submits is what the peer has been asked for since it was last looked at.
func (h *heir) submits(peer string) (ms []wire.Submit) {
	for _, e := range h.c.Take() {
		if e, ok := e.(home.SendOwner); ok && e.Peer == peer {
			if m, ok := e.Msg.(wire.Submit); ok {
				ms = append(ms, m)
			}
		}
	}
	return ms
}

func request(i int) *wire.Request {
	return &wire.Request{Action: digest.Of(digest.SHA256, []byte{byte(i)})}
}

func (h *heir) waiting() int { return h.c.Status(h.now).Queued }

func (h *heir) inventory(worker, of string, term uint64, has ...wire.Held) {
	h.c.FromWorker(h.now, worker, h.worker[worker], wire.Inventory{Of: of, Term: term, Attempts: has})
}

func TestHeirWaits(t *testing.T) {
	t.Run("for the inventories of all workers", func(t *testing.T) {
		h := newHeir()
		h.dies("peer")
		if h.held() == 0 {
			t.Fatal("nothing is held")
		}
		h.inventory("a", "peer", 1)
		if h.waiting() == 0 {
			t.Error("it did not wait for b")
		}
		h.inventory("b", "peer", 1)
		if n := h.waiting(); n > 0 {
			t.Errorf("%d are still held", n)
		}
	})
	t.Run("not for a worker that is known to be dead, though it is in view", func(t *testing.T) {
		h := newHeir()
		h.c.WorkerDown(h.now, "b", h.worker["b"])
		h.c.WorkerGone(h.now, "b")
		h.c.View(h.now, []string{"s", "peer"}, []string{"a", "b"})
		h.dies("peer")
		if h.held() == 0 {
			t.Fatal("nothing is held")
		}
		h.inventory("a", "peer", 1)
		if n := h.waiting(); n > 0 {
			t.Errorf("%d are still held", n)
		}
	})
	t.Run("and starts nothing that is another's to take over by then", func(t *testing.T) {
		h := newHeir()
		h.c.Take()
		h.held()
		var runs []wire.Held
		for _, m := range h.submits("peer") {
			name := operation.Task{Key: m.Request.Key(), Owner: "peer"}
			runs = append(runs, wire.Held{Ref: wire.Ref{Task: name.String(), Attempt: 1}, Owner: "peer", State: wire.Started})
			u := wire.Update{Name: operation.Name{Task: name}.String(), Stage: wire.Executing}
			h.c.FromOwner(h.now, "peer", h.peers["peer"][0], wire.Answer{Call: m.Call, Update: u})
		}
		h.up("other", 1)
		h.c.FromCaller(h.now, "other", h.peers["other"][1], wire.Opened{})
		h.up("new", 1)
		h.dies("peer")
		for _, m := range h.submits("new") { // it is no home yet
			h.c.FromOwner(h.now, "new", h.peers["new"][0], wire.NotMine{Call: m.Call})
		}
		h.inventory("a", "peer", 1)
		h.inventory("b", "peer", 1, runs...)
		h.dies("other") // before it took anything over
		h.c.FromCaller(h.now, "new", h.peers["new"][1], wire.Opened{})
		h.inventory("a", "other", 1)
		h.inventory("b", "other", 1, runs...)
		owned, passed := 0, 0
		for _, e := range h.c.Take() {
			switch e := e.(type) {
			case tasks.Send:
				switch m := e.Msg.(type) {
				case wire.Offer:
					t.Errorf("%s is started, and runs at b", m.Task.Action)
				case wire.Own:
					owned++
				}
			case home.SendOwner:
				if _, ok := e.Msg.(wire.Submit); ok {
					passed++
				}
			}
		}
		if owned == 0 || passed == 0 {
			t.Errorf("%d were taken over and %d passed on", owned, passed)
		}
	})
	t.Run("for those of the last term", func(t *testing.T) {
		h := newHeir()
		h.dies("peer")
		h.up("peer", 2)
		h.dies("peer")
		if h.held() == 0 {
			t.Fatal("nothing is held")
		}
		h.inventory("a", "peer", 1)
		h.inventory("b", "peer", 1)
		if h.waiting() == 0 {
			t.Error("it did not wait for what came under the second term")
		}
		h.inventory("a", "peer", 2)
		h.inventory("b", "peer", 2)
		if n := h.waiting(); n > 0 {
			t.Errorf("%d are still held", n)
		}
	})
}
