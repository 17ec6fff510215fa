// Package home is a scheduler's core as a whole: which scheduler owns which
// task, what becomes of a call that another one is asked for, who is dead, and
// who takes over. The tasks that this scheduler owns are package tasks'.
//
// It is pure, as package tasks is: exported methods of Core are events, Take
// returns what is to be done about them. It isn't safe for concurrent use.
//
// A key's home is the scheduler that rendezvous names among those in the set of
// homes. A peer enters the set once it was sent the keys that are kept from it,
// and leaves it when it is dead. Its heirs fence its term at all workers, and
// start nothing of what they inherit until each worker has said what it runs.
package home

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/remex-build/terraform-provider-remex/daemon/cluster/placement"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/operation"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/tasks"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/wire"
)

const (
	silentAfter = 2 * time.Second  // a peer that nobody hears is dead
	workerLease = 10 * time.Second // what a worker that isn't heard may go on running
	settleAfter = time.Second      // from the start, for the view to fill
	openWithin  = 5 * time.Second  // a joining scheduler waits for the others' keeps
	judgeAfter  = 30 * time.Second // from the start, before a platform is called impossible
	fenceFor    = 10 * time.Minute // workers that come are told of it
	fetchFor    = 5 * time.Minute  // results of schedulers that are gone
	beatPeers   = 500 * time.Millisecond
	beatWorkers = time.Second
	maxHops     = 3
	maxFetch    = 50_000
	maxTries    = 8 // routes of one call
)

// Effect is what an event brings about: a tasks.Send, a tasks.Close, or one of
// the types below.
type Effect any

type (
	// SendOwner says something over our stream to a peer.
	SendOwner struct {
		Peer    string
		Session uint64
		Msg     wire.ToOwner
	}
	// SendCaller says something over a peer's stream to us.
	SendCaller struct {
		Peer    string
		Session uint64
		Msg     wire.ToCaller
	}
	// Reply tells a local call how its operation stands. Gone, an Update that
	// is Done, and the only Reply to Look and Cancel end the call.
	Reply struct {
		Call   uint64
		Update wire.Update
		Gone   bool
	}
	// Rejoin ends all streams, which are to be opened anew under the new term.
	Rejoin struct{}
)

// Core is the state. Make one with New.
type Core struct {
	self  string
	tasks *tasks.Core
	begun time.Time
	term  uint64

	open   bool // we may be a home: all peers' keeps are known
	openBy time.Time

	schedulers map[string]bool // in the view, without ourselves
	workersIn  map[string]bool // in the view, without those that are gone
	gone       map[string]bool // in the view, though their ports refuse

	peers map[string]*peer
	nodes []string // the set of homes, sorted
	kept  map[operation.Key]string
	calls map[uint64]*call
	local map[uint64]*call
	last  uint64 // call
	holds map[*call]struct{}

	workers  map[string]*worker
	inherits []*inheritance
	fences   map[string]fence
	strays   []stray
	fetch    map[string]stray // results by task, of schedulers that are gone

	beatP, beatW time.Time
	out          []Effect
	scratch      []tasks.Effect
}

// peer is another scheduler that was heard.
type peer struct {
	id      string
	term    uint64
	out, in uint64 // sessions of our stream to it and its stream to us; 0: none
	heard   time.Time
	refused bool // its port, since out ended
	home    bool // it is in the set
	open    bool // it has said that it is open
	keeps   bool // we have its keeps
	dead    bool
	hears   map[string]time.Time // whom it last heard, and when

	ours   map[uint64]*call // calls that it has of us
	theirs map[uint64]*call // calls that we have of it, by its numbers
}

type worker struct {
	session uint64
	heard   time.Time
	hears   map[string]time.Time
}

type fence struct {
	term  uint64
	until time.Time
}

// stray is an attempt for a scheduler that isn't known to live.
type stray struct {
	worker string
	held   wire.Held
	key    operation.Key
	since  time.Time
}

// inheritance is what is not yet known of what a dead scheduler had running.
type inheritance struct {
	of       string                 // "" of whoever was here before we began
	term     uint64                 // its last
	kept     map[operation.Key]bool // by it, though their home was here
	pending  map[string]bool
	deadline time.Time
}

// New is a Core that knows nobody.
func New(now time.Time, cfg tasks.Config) *Core {
	c := &Core{
		self:       cfg.Self,
		begun:      now,
		term:       1,
		openBy:     now.Add(openWithin),
		schedulers: make(map[string]bool),
		workersIn:  make(map[string]bool),
		gone:       make(map[string]bool),
		peers:      make(map[string]*peer),
		kept:       make(map[operation.Key]string),
		calls:      make(map[uint64]*call),
		local:      make(map[uint64]*call),
		holds:      make(map[*call]struct{}),
		workers:    make(map[string]*worker),
		fences:     make(map[string]fence),
		fetch:      make(map[string]stray),
		inherits:   []*inheritance{{deadline: now.Add(workerLease)}},
	}
	cfg.Hold = c.inherited
	c.tasks = tasks.New(cfg)
	c.rehome()
	return c
}

// Take returns the effects since it was last called, in order. They are valid
// until the next event.
func (c *Core) Take() []Effect {
	out := c.out
	c.out = c.out[:0]
	return out
}

// Term is what our hellos say.
func (c *Core) Term() uint64 { return c.term }

// Status describes what we own.
func (c *Core) Status(now time.Time) tasks.Status { return c.tasks.Status(now) }

// List yields the operations that are known here.
func (c *Core) List(yield func(wire.Update) bool) { c.tasks.List(yield) }

func (c *Core) emit(e Effect) { c.out = append(c.out, e) }

// drain passes on what the tasks core wants done.
func (c *Core) drain(now time.Time) {
	for {
		c.scratch = append(c.scratch[:0], c.tasks.Take()...)
		if len(c.scratch) == 0 {
			return
		}
		again := c.scratch
		c.scratch = nil // what follows may come back here
		for _, e := range again {
			switch e := e.(type) {
			case tasks.Notify:
				if k := c.calls[uint64(e.Waiter)]; k != nil {
					c.answer(now, k, e.Update, e.Gone)
				}
			case tasks.Ended:
				c.announce(e.Key, wire.Releases{Keys: []operation.Key{e.Key}})
			default:
				c.emit(e)
			}
		}
		c.scratch = again
	}
}

func (c *Core) toOwner(p *peer, m wire.ToOwner) {
	if p.out != 0 {
		c.emit(SendOwner{Peer: p.id, Session: p.out, Msg: m})
	}
}

func (c *Core) toCaller(p *peer, session uint64, m wire.ToCaller) {
	if p != nil && p.in == session && session != 0 {
		c.emit(SendCaller{Peer: p.id, Session: session, Msg: m})
	}
}

// home is the key's among the nodes, "" among none.
func (c *Core) home(key operation.Key, nodes []string) string {
	if len(nodes) == 1 {
		return nodes[0]
	}
	best := placement.Rendezvous(key.Hash(), nodes, 1)
	if len(best) == 0 {
		return ""
	}
	return nodes[best[0]]
}

// rehome makes the set of homes anew.
func (c *Core) rehome() {
	nodes := []string{c.self}
	for _, p := range c.peers {
		if p.home {
			nodes = append(nodes, p.id)
		}
	}
	slices.Sort(nodes)
	c.nodes = nodes
}

// without is the nodes but for one.
func (c *Core) without(nodes []string, id string) []string {
	return slices.DeleteFunc(slices.Clone(nodes), func(n string) bool { return n == id })
}

func sortedPeers(m map[string]*peer) []*peer {
	return slices.SortedFunc(maps.Values(m), func(a, b *peer) int { return cmp.Compare(a.id, b.id) })
}

func sortedCalls(m map[uint64]*call) []*call {
	return slices.SortedFunc(maps.Values(m), func(a, b *call) int { return cmp.Compare(a.id, b.id) })
}

// View is who the membership says there is.
func (c *Core) View(now time.Time, schedulers, workers []string) {
	clear(c.schedulers)
	for _, id := range schedulers {
		if id != c.self {
			c.schedulers[id] = true
		}
	}
	clear(c.workersIn)
	gone := c.gone
	c.gone = make(map[string]bool)
	for _, id := range workers {
		if gone[id] {
			c.gone[id] = true
		} else {
			c.workersIn[id] = true
		}
	}
	c.tryOpen(now)
	c.drain(now)
}
