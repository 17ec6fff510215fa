// Package slots is the core of a worker's link to its schedulers: which
// executor runs what, which free executor is lent to whom, whose bid is taken
// next, and which results wait to be acknowledged.
//
// It is pure: each exported method of Core is one event, and what is to be done
// about it gathers until Take. It isn't safe for concurrent use.
//
// It promises that an executor has one task at a time and is lent to one
// scheduler at a time, that nothing waits beside an idle executor once its
// scheduler has bid, that nothing is taken from a fenced term, and that a
// finished attempt's result is kept until its scheduler has it.
package slots

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/cespare/xxhash/v2"
	"google.golang.org/grpc/codes"

	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/wire"
)

const (
	recallWithin = 50 * time.Millisecond // a loan that isn't answered for is void
	claimWithin  = time.Second           // so is a claim, and the bid it followed
	quietAfter   = 3 * time.Second       // a silent scheduler is lent nothing
	keepAcked    = 5 * time.Minute
	keepUnacked  = 10 * time.Minute
	beatEvery    = time.Second
)

// Config says what the worker has.
type Config struct {
	Self      string // Member.ID
	Name      string // Member.Name
	Executors int
	// FinishedBytes bounds the results that are kept, the oldest acknowledged
	// ones being the first to go.
	FinishedBytes int
}

// Effect is what an event brings about: one of the types below.
type Effect interface{ effect() }

type (
	// Send says something to a scheduler over its current stream.
	Send struct {
		Scheduler string
		Session   uint64
		Msg       wire.FromWorker
	}
	// Run starts a task on an executor. Started, Freed and Ended follow.
	Run struct {
		Executor int
		Task     *wire.Task
	}
	// Prefetch tells that the task will be run next on some executor.
	Prefetch struct{ Task *wire.Task }
	// Stop ends what Run or Prefetch began. Of a task that runs, Ended follows.
	Stop struct{ Ref wire.Ref }
)

func (Send) effect()     {}
func (Run) effect()      {}
func (Prefetch) effect() {}
func (Stop) effect()     {}

// Core is the state. Make one with New.
type Core struct {
	cfg      Config
	execs    []executor
	ahead    []*run // accepted and not begun, in order
	claims   map[uint64]*claim
	runs     map[wire.Ref]*run
	finished []*run // oldest first
	bytes    int    // of the finished ones' responses

	scheds map[string]*sched
	fences map[string]uint64 // terms that are over
	seq    uint64
	beat   time.Time
	closed bool

	out []Effect
}

// use is what an executor is doing.
type use uint8

const (
	free     use = iota // only within an event, or without a scheduler
	lent                // a scheduler may place a task on it
	recalled            // lent, and asked back
	claimed             // a scheduler was asked for its best task
	busy                // it runs one
)

type executor struct {
	use      use
	sched    string    // lent, recalled: to whom
	seq      uint64    // of the loan
	deadline time.Time // recalled
	run      *run      // busy
}

type claim struct {
	sched    string
	executor int // -1: for a task ahead
	deadline time.Time
}

type sched struct {
	id      string
	session uint64
	term    uint64
	heard   time.Time
	bid     *wire.Bid
}

type run struct {
	task     *wire.Task
	ref      wire.Ref
	owner    string
	state    wire.AttemptState
	started  time.Time
	executor int // -1: ahead, or freed
	ended    time.Time
	acked    bool
	done     wire.Done
}

// New is a Core with all executors free and no scheduler.
func New(cfg Config) *Core {
	return &Core{
		cfg:    cfg,
		execs:  make([]executor, cfg.Executors),
		claims: make(map[uint64]*claim),
		runs:   make(map[wire.Ref]*run),
		scheds: make(map[string]*sched),
		fences: make(map[string]uint64),
	}
}

// Take returns the effects since it was last called, in order. They are valid
// until the next event.
func (c *Core) Take() []Effect {
	out := c.out
	c.out = c.out[:0]
	return out
}

func (c *Core) send(s *sched, m wire.FromWorker) {
	if s != nil {
		c.out = append(c.out, Send{Scheduler: s.id, Session: s.session, Msg: m})
	}
}

// Held lists all attempts, for a hello, but for those that came to nothing: of
// them only Done tells.
func (c *Core) Held() []wire.Held {
	held := make([]wire.Held, 0, len(c.runs))
	for _, r := range c.sortedRuns() {
		if r.state == wire.Finished && r.done.Code != codes.OK {
			continue
		}
		held = append(held, wire.Held{
			Ref: r.ref, Owner: r.owner, State: r.state, StartedAt: r.started, DoNotCache: r.task.DoNotCache,
		})
	}
	return held
}

func (c *Core) sortedRuns() []*run {
	return slices.SortedFunc(maps.Values(c.runs), func(a, b *run) int {
		return cmp.Or(cmp.Compare(a.ref.Task, b.ref.Task), cmp.Compare(a.ref.Attempt, b.ref.Attempt))
	})
}

// Running is how many executors run something.
func (c *Core) Running() (n int) {
	for i := range c.execs {
		if c.execs[i].use == busy {
			n++
		}
	}
	return n
}

// SchedulerUp is a new stream to a scheduler, which said hello. What it was
// lent before is void, as it is on its side.
func (c *Core) SchedulerUp(now time.Time, id string, session, term uint64) {
	c.drop(id)
	s := &sched{id: id, session: session, term: term, heard: now}
	c.scheds[id] = s
	if c.fenced(s) {
		c.send(s, wire.Fenced{Node: id, Term: c.fences[id]})
	}
	// What it may have missed since our hello.
	for _, r := range c.sortedRuns() {
		switch {
		case r.owner != id:
		case r.state == wire.Started:
			c.send(s, wire.AttemptStarted{Ref: r.ref, At: r.started})
		case r.state == wire.Finished && !r.acked:
			c.send(s, r.done)
		}
	}
	c.settle(now)
}

// SchedulerDown is the end of that stream.
func (c *Core) SchedulerDown(now time.Time, id string, session uint64) {
	if s := c.scheds[id]; s != nil && s.session == session {
		c.drop(id)
		c.settle(now)
	}
}

// drop forgets what a scheduler was lent and asked for. What it placed runs on.
func (c *Core) drop(id string) {
	delete(c.scheds, id)
	c.unlend(id)
}

func (c *Core) unlend(id string) {
	for i := range c.execs {
		if e := &c.execs[i]; (e.use == lent || e.use == recalled) && e.sched == id {
			*e = executor{}
		}
	}
	for n, cl := range c.claims {
		if cl.sched == id {
			c.unclaim(n, cl)
		}
	}
}

func (c *Core) unclaim(n uint64, cl *claim) {
	delete(c.claims, n)
	if cl.executor >= 0 {
		c.execs[cl.executor] = executor{}
	}
}

// Close ends everything that runs, and takes nothing new. Bye is to follow when
// it has ended.
func (c *Core) Close() {
	c.closed = true
	for _, r := range c.sortedRuns() {
		if r.state != wire.Finished {
			c.out = append(c.out, Stop{Ref: r.ref})
		}
	}
}

// Bye tells all schedulers that nothing runs here any more.
func (c *Core) Bye() {
	for _, s := range c.sorted() {
		c.send(s, wire.Bye{})
	}
}

func (c *Core) fenced(s *sched) bool { return c.fences[s.id] >= s.term }

// Received is what a scheduler said over the stream of that session.
func (c *Core) Received(now time.Time, id string, session uint64, m wire.ToWorker) {
	s := c.scheds[id]
	if s == nil || s.session != session {
		return
	}
	s.heard = now
	if f, ok := m.(wire.Fence); ok {
		c.fence(s, f)
		c.settle(now)
		return
	}
	if c.fenced(s) {
		c.rebuff(s, m)
		return
	}
	switch m := m.(type) {
	case wire.Offer:
		c.offer(s, m)
	case wire.None:
		if cl := c.claims[m.Claim]; cl != nil && cl.sched == id {
			s.bid = nil
			c.unclaim(m.Claim, cl)
		}
	case wire.GiveBack:
		if e := c.loan(id, m.Slot, m.Seq); e != nil {
			*e = executor{}
		}
	case wire.Bid:
		s.bid = &m
	case wire.Kill:
		c.kill(now, m.Ref)
	case wire.Withdraw:
		if r := c.runs[m.Ref]; r != nil && c.unqueue(r) {
			delete(c.runs, r.ref)
			c.send(s, wire.Withdrawn{Ref: r.ref})
		}
	case wire.Ack:
		if r := c.runs[m.Ref]; r != nil && r.state == wire.Finished {
			r.acked = true
		}
	case wire.Own:
		c.own(s, m)
	}
	c.settle(now)
}

// own passes an attempt from one owner to another.
func (c *Core) own(s *sched, m wire.Own) {
	r := c.runs[m.Ref]
	switch {
	case r == nil:
		c.send(s, wire.Disowned{Ref: m.Ref})
	case r.owner != m.From && r.owner != s.id:
		c.send(s, wire.Disowned{Ref: m.Ref, Owner: r.owner})
	default:
		r.owner = s.id
		switch r.state {
		case wire.Started: // perhaps since it was listed
			c.send(s, wire.AttemptStarted{Ref: r.ref, At: r.started})
		case wire.Finished:
			c.send(s, r.done)
		}
	}
}

// rebuff tells a fenced scheduler so, and refuses what it places.
func (c *Core) rebuff(s *sched, m wire.ToWorker) {
	if _, beat := m.(wire.SchedulerBeat); beat {
		return
	}
	c.send(s, wire.Fenced{Node: s.id, Term: c.fences[s.id]})
	if o, ok := m.(wire.Offer); ok {
		c.send(s, wire.Refuse{Ref: o.Task.Ref()})
	}
}

// fence ends a scheduler's terms, and tells the one that took its tasks over
// what there is of them.
func (c *Core) fence(by *sched, m wire.Fence) {
	c.fences[m.Node] = max(c.fences[m.Node], m.Term)
	if s := c.scheds[m.Node]; s != nil && c.fenced(s) {
		s.bid = nil
		c.unlend(s.id)
		c.send(s, wire.Fenced{Node: m.Node, Term: c.fences[m.Node]})
	}
	c.send(by, wire.Inventory{Of: m.Node, Term: m.Term, Attempts: c.Held()})
}

// loan finds the executor that is lent so, or nil.
func (c *Core) loan(id string, slot uint32, seq uint64) *executor {
	if int(slot) >= len(c.execs) {
		return nil
	}
	e := &c.execs[slot]
	if (e.use == lent || e.use == recalled) && e.sched == id && e.seq == seq {
		return e
	}
	return nil
}

// offer takes a task, unless what it was offered for is no longer there.
func (c *Core) offer(s *sched, m wire.Offer) {
	r := &run{task: m.Task, ref: m.Task.Ref(), owner: s.id, state: wire.Accepted, executor: -1}
	at, ok := int(m.Slot), c.loan(s.id, m.Slot, m.Seq) != nil
	if m.Claim != 0 {
		cl := c.claims[m.Claim]
		if ok = cl != nil && cl.sched == s.id; ok {
			at = cl.executor
			delete(c.claims, m.Claim)
			if idle := c.oldestClaim(false); at < 0 && idle != nil {
				at, idle.executor = idle.executor, -1 // no need to wait for that one
			}
		}
	}
	if !ok || c.closed || c.runs[r.ref] != nil {
		if ok && at >= 0 {
			c.execs[at] = executor{}
		}
		c.send(s, wire.Refuse{Ref: r.ref})
		return
	}
	c.runs[r.ref] = r
	if at >= 0 {
		c.begin(at, r)
		return
	}
	c.ahead = append(c.ahead, r)
	c.out = append(c.out, Prefetch{Task: r.task})
}

func (c *Core) begin(i int, r *run) {
	r.executor = i
	c.execs[i] = executor{use: busy, run: r}
	c.out = append(c.out, Run{Executor: i, Task: r.task})
}

// unqueue takes a run from those ahead; false when it isn't one.
func (c *Core) unqueue(r *run) bool {
	i := slices.Index(c.ahead, r)
	if i < 0 {
		return false
	}
	c.ahead = slices.Delete(c.ahead, i, i+1)
	c.out = append(c.out, Stop{Ref: r.ref})
	return true
}

// home is where the schedulers' turn begins for slot i: different for each
// worker, so that their loans are spread.
func (c *Core) home(i, n int) int {
	return int((xxhash.Sum64String(c.cfg.Name) + uint64(i)) % uint64(n))
}
