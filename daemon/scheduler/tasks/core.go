// Package tasks is the core of a scheduler: the tasks that it owns, from the
// call that asks for them to the result that answers it, and the workers that
// run them. DESIGN.md of package scheduler has the state diagrams.
//
// It is pure: each exported method of Core is one event, and what is to be done
// about it gathers until Take. It knows no clock but the times it is given, no
// network and no goroutine, and the same events in the same order have the same
// effects. It isn't safe for concurrent use.
//
// It promises that each task is in one state, that a loan or a claim is used
// once, that nobody starts a second attempt while the first one's worker can be
// reached, that each waiter gets one final update, and that every state has a
// deadline.
package tasks

import (
	"time"

	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/match"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/operation"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/queue"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/wire"
)

// The times that everything here is bounded by (execution.md sections 2 to 4).
const (
	abandonAfter = 60 * time.Second      // a task without a waiter
	keepFinished = 5 * time.Minute       // a result, for those who ask for it by name
	comeBack     = 2 * time.Second       // a worker whose connection broke
	quietAfter   = 3 * time.Second       // a silent worker gets no new work
	lostAfter    = 10 * time.Second      // a silent worker is lost
	poisonFor    = 10 * time.Minute      // an action that takes its workers along is refused
	poisonAt     = 3                     // attempts that did
	troubleAt    = 5                     // attempts that the workers' own troubles ended
	avoidFor     = time.Second           // the worker that had trouble
	poolsSeen    = 15 * time.Minute      // a pool without workers counts as existing
	bidAgain     = 50 * time.Millisecond // between two bids at one worker
	startBy      = 10 * time.Minute      // from grant to the start of the process
	pastTimeout  = 5 * time.Minute       // a worker that doesn't enforce the action's timeout
	killWithin   = time.Minute           // a worker that doesn't end what it was told to
	stealAfter   = time.Second           // a task ahead on one worker, while another goes through the queue
	sweepEvery   = 10 * time.Second      // of shares and poison
	maxPoison    = 10_000                // remembered
	maxDetached  = 64                    // operations of a task that nobody waits on
)

// Config says how a Core behaves.
type Config struct {
	Self  string // Member.ID, the owner in names
	Rules match.Rules
	// MaxQueued is the hard limit of waiting tasks.
	MaxQueued int
	// FinishedBytes bounds the results kept for those who ask by name.
	FinishedBytes int
	// Hold says of which keys it isn't known yet whether they run already: their
	// tasks are held until Release. Nil means none.
	Hold func(operation.Key) bool
	// Declared are pools that may be empty.
	Declared []*match.Profile
}

// Waiter names whoever waits on an operation. It is chosen by the caller, and
// never again used after its final update.
type Waiter uint64

// Effect is what an event brings about: one of the types below.
type Effect interface{ effect() }

type (
	// Send says something to a worker over its current stream.
	Send struct {
		Worker  string
		Session uint64
		Msg     wire.ToWorker
	}
	// Close ends a worker's stream: the worker has been given up, or has left.
	Close struct {
		Worker  string
		Session uint64
		Left    bool // it said so
	}
	// Notify tells a waiter how its operation stands. Done or Gone is the
	// last it hears. Gone means that there is no such operation any more, and
	// that no result of it is known.
	Notify struct {
		Waiter Waiter
		Update wire.Update
		Gone   bool
	}
	// Ended says that nothing is left to merge with under the key.
	Ended struct{ Key operation.Key }
)

func (Send) effect()   {}
func (Close) effect()  {}
func (Notify) effect() {}
func (Ended) effect()  {}

// Core is the state. Make one with New.
type Core struct {
	cfg Config

	byID    map[string]*task // by name, also by those of owners before
	byKey   map[operation.Key]*task
	waiters map[Waiter]*task
	q       queue.Queue[*task]
	seq     uint64
	held    map[*task]struct{} // those in state held
	idle    map[*task]struct{} // live ones without a waiter
	fresh   []*task            // started since the last tick
	aheads  []*attempt         // granted ahead of an executor, oldest first
	live    int                // tasks that aren't done
	busy    int                // those placed or running

	finished      []*task // done, oldest first
	finishedBytes int

	workers   map[string]*worker
	lenders   map[*worker]struct{} // those with lent slots
	pools     map[string]*pool     // by profile
	platforms map[string]*platform // those of live tasks
	rebid     bool                 // a task was queued since bids were last looked at
	judging   bool

	poison    map[digest.Digest]poisoned
	nextSweep time.Time

	out []Effect
}

type poisoned struct {
	until   time.Time
	workers string
}

// New is an empty Core.
func New(cfg Config) *Core {
	return &Core{
		cfg:       cfg,
		byID:      make(map[string]*task),
		byKey:     make(map[operation.Key]*task),
		waiters:   make(map[Waiter]*task),
		held:      make(map[*task]struct{}),
		idle:      make(map[*task]struct{}),
		workers:   make(map[string]*worker),
		lenders:   make(map[*worker]struct{}),
		pools:     make(map[string]*pool),
		platforms: make(map[string]*platform),
		poison:    make(map[digest.Digest]poisoned),
	}
}

// Take returns the effects since it was last called, in order. They are valid
// until the next event.
func (c *Core) Take() []Effect {
	out := c.out
	c.out = c.out[:0]
	return out
}

func (c *Core) emit(e Effect) { c.out = append(c.out, e) }

// state is where a live task stands.
type state uint8

const (
	held    state = iota // waits until it is known whether it runs already
	queued               // waits for a worker
	placed               // a worker has it
	running              // its process runs
	done                 // it has its result
)

type task struct {
	queue.Item[*task] // Seq, Arrived, Priority and so on

	id    string
	key   operation.Key
	req   *wire.Request // nil when it is only known from a worker
	plat  *platform
	state state
	// mergeable: it is in byKey.
	mergeable bool

	ops      []uint64 // nonces of the operations that wait or may come back
	waiters  []waiter
	since    time.Time // without a waiter
	aliases  []string  // names given by owners before
	attempts []*attempt
	last     uint32 // attempt

	worker    string // name of the one it was last placed on
	startedAt time.Time
	lost      []string // workers that a started attempt took along
	troubles  int
	avoid     string // worker
	avoidTill time.Time

	final   *wire.Update // when done
	expires time.Time
}

type waiter struct {
	id       Waiter
	op       uint64
	as       string // the task's name in the operation's
	priority int32
}

// attempt is a task on a worker.
type attempt struct {
	t       *task
	w       *worker
	ref     wire.Ref
	from    string // the owner that it was taken over from
	granted time.Time
	started bool
	at      time.Time
	// charged: it counts in the fair share.
	charged     bool
	ahead       bool // an executor may not have begun it
	withdrawing bool
	killedAt    time.Time // zero unless it was told to end
}

// update is how the task stands for one of its waiters.
func (t *task) update(w waiter) wire.Update {
	u := wire.Update{Action: t.key.Action, Stage: wire.Queued, QueuedAt: t.Arrived}
	switch t.state {
	case running:
		u.Stage, u.Worker, u.StartedAt = wire.Executing, t.worker, t.startedAt
	case done:
		u = *t.final
	}
	u.Name = operation.Join(w.as, w.op)
	return u
}

// Has reports whether a task of that name is known, done or not.
func (c *Core) Has(id string) bool { return c.byID[id] != nil }

// Owns reports whether a call for key would merge with a task here.
func (c *Core) Owns(key operation.Key) bool { return c.byKey[key] != nil }

// Keys yields the keys that calls would merge with here, in no order.
func (c *Core) Keys(yield func(operation.Key) bool) {
	for k := range c.byKey {
		if !yield(k) {
			return
		}
	}
}
