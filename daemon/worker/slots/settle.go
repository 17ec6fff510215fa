package slots

import (
	"cmp"
	"slices"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/wire"
)

// settle gives every free executor something to do: a task that was accepted
// ahead, the best bid's, or it is lent.
func (c *Core) settle(now time.Time) {
	if c.closed {
		return
	}
	for i := range c.execs {
		if c.execs[i].use == free && len(c.ahead) > 0 {
			r := c.ahead[0]
			c.ahead = c.ahead[1:]
			c.begin(i, r)
		}
	}
	for i := range c.execs {
		if c.execs[i].use != free {
			continue
		}
		if cl := c.oldestClaim(true); cl != nil {
			cl.executor = i // what it brings need not wait
			c.execs[i] = executor{use: claimed}
		} else if s := c.bidder(now); s != nil {
			c.execs[i] = executor{use: claimed}
			c.claim(now, s, i)
		} else if s := c.borrower(now, i); s != nil {
			c.seq++
			c.execs[i] = executor{use: lent, sched: s.id, seq: c.seq}
			c.send(s, wire.Lend{Slot: uint32(i), Seq: c.seq})
		}
	}
	c.claimAhead(now)
	c.recall(now)
}

// oldestClaim is the oldest claim for a task ahead, or of those for an idle
// executor; nil if there is none.
func (c *Core) oldestClaim(ahead bool) *claim {
	first := uint64(0)
	for n, cl := range c.claims {
		if cl.executor < 0 == ahead && (first == 0 || n < first) {
			first = n
		}
	}
	return c.claims[first]
}

// claimAhead looks for tasks to follow those that run, one an executor, once no
// executor is idle.
func (c *Core) claimAhead(now time.Time) {
	n := len(c.execs) - len(c.ahead)
	for i := range c.execs {
		if u := c.execs[i].use; u != busy {
			return
		}
	}
	for _, cl := range c.claims {
		if cl.executor < 0 {
			n--
		}
	}
	for ; n > 0; n-- {
		s := c.bidder(now)
		if s == nil {
			return
		}
		c.claim(now, s, -1)
	}
}

func (c *Core) claim(now time.Time, s *sched, executor int) {
	c.seq++
	c.claims[c.seq] = &claim{sched: s.id, executor: executor, deadline: now.Add(claimWithin)}
	c.send(s, wire.Claim{ID: c.seq, Ahead: executor < 0})
}

// recall asks for lent executors back that a bidder could use.
func (c *Core) recall(now time.Time) {
	want := 0
	for _, s := range c.scheds {
		if s.bid != nil && c.usable(now, s) {
			want += int(s.bid.Want)
		}
	}
	for i := range c.execs {
		if u := c.execs[i].use; u == recalled || u == claimed {
			want--
		}
	}
	for i := range c.execs {
		e := &c.execs[i]
		if want <= 0 {
			return
		}
		if e.use != lent {
			continue
		}
		e.use, e.deadline = recalled, now.Add(recallWithin)
		want--
		c.send(c.scheds[e.sched], wire.Recall{Slot: uint32(i), Seq: e.seq})
	}
}

func (c *Core) usable(now time.Time, s *sched) bool {
	return !c.fenced(s) && now.Sub(s.heard) < quietAfter
}

// sorted is the schedulers by id, so that no order depends on a map's.
func (c *Core) sorted() []*sched {
	ss := make([]*sched, 0, len(c.scheds))
	for _, s := range c.scheds {
		ss = append(ss, s)
	}
	slices.SortFunc(ss, func(a, b *sched) int { return cmp.Compare(a.id, b.id) })
	return ss
}

// bidder is whose standing bid is the best, and could use one more claim.
func (c *Core) bidder(now time.Time) *sched {
	var best *sched
	for _, s := range c.sorted() {
		if s.bid == nil || !c.usable(now, s) || c.claimsAt(s) >= int(s.bid.Want) {
			continue
		}
		if best == nil || s.bid.Before(best.bid.Class) {
			best = s
		}
	}
	return best
}

func (c *Core) claimsAt(s *sched) (n int) {
	for _, cl := range c.claims {
		if cl.sched == s.id {
			n++
		}
	}
	return n
}

// borrower is who is lent executor i: in turn, so that each scheduler has
// slots to place tasks on at once.
func (c *Core) borrower(now time.Time, i int) *sched {
	ss := c.sorted()
	n := len(ss)
	for k := range ss {
		if s := ss[(c.home(i, n)+k)%n]; c.usable(now, s) {
			return s
		}
	}
	return nil
}

// kill ends an attempt in whatever state it is.
func (c *Core) kill(now time.Time, ref wire.Ref) {
	r := c.runs[ref]
	switch {
	case r == nil || r.state == wire.Finished:
	case c.unqueue(r):
		c.end(now, r, nil, codes.Canceled, "killed before it began")
	default:
		c.out = append(c.out, Stop{Ref: ref})
	}
}

// Started says that the attempt's process runs.
func (c *Core) Started(now time.Time, ref wire.Ref) {
	r := c.runs[ref]
	if r == nil || r.state != wire.Accepted {
		return
	}
	r.state, r.started = wire.Started, now
	c.send(c.scheds[r.owner], wire.AttemptStarted{Ref: ref, At: now})
}

// Freed says that the attempt's executor may run the next.
func (c *Core) Freed(now time.Time, ref wire.Ref) {
	if r := c.runs[ref]; r != nil {
		c.vacate(r)
		c.settle(now)
	}
}

func (c *Core) vacate(r *run) {
	if r.executor >= 0 {
		c.execs[r.executor] = executor{}
		r.executor = -1
	}
}

// Ended is the end of what Run began: with a response, or with a code other
// than OK when the trouble was the worker's.
func (c *Core) Ended(now time.Time, ref wire.Ref, response []byte, code codes.Code, message string) {
	r := c.runs[ref]
	if r == nil || r.state == wire.Finished {
		return
	}
	c.vacate(r)
	if c.closed && code != codes.OK {
		delete(c.runs, ref) // Bye says it for all
		return
	}
	c.end(now, r, response, code, message)
	c.settle(now)
}

func (c *Core) end(now time.Time, r *run, response []byte, code codes.Code, message string) {
	r.state, r.ended = wire.Finished, now
	r.done = wire.Done{Ref: r.ref, Response: response, Code: code, Message: message}
	// What came in with the offer is no longer needed, and large.
	r.task = &wire.Task{ID: r.ref.Task, Attempt: r.ref.Attempt, DoNotCache: r.task.DoNotCache}
	c.finished = append(c.finished, r)
	c.bytes += r.weight()
	c.send(c.scheds[r.owner], r.done)
	c.expire(now)
}

func (r *run) weight() int { return len(r.done.Response) + 1024 }

// expire forgets results that were kept long enough, and, to keep within the
// bound, first acknowledged ones and then the oldest.
func (c *Core) expire(now time.Time) {
	over := func(r *run) bool {
		age := now.Sub(r.ended)
		return age >= keepUnacked || r.acked && (age >= keepAcked || c.bytes > c.cfg.FinishedBytes)
	}
	c.forget(over)
	if c.bytes > c.cfg.FinishedBytes {
		c.forget(func(*run) bool { return c.bytes > c.cfg.FinishedBytes })
	}
}

func (c *Core) forget(over func(*run) bool) {
	// The oldest acknowledged ones mostly stand in front: the scan ends at the
	// first that stays.
	n := 0
	for n < len(c.finished) && over(c.finished[n]) {
		c.bytes -= c.finished[n].weight()
		delete(c.runs, c.finished[n].ref)
		c.finished[n] = nil
		n++
	}
	c.finished = c.finished[n:]
}

// Next is when Tick is to be called next, whatever happens until then. Events
// change it.
func (c *Core) Next() time.Time {
	next := c.beat.Add(beatEvery)
	for i := range c.execs {
		if e := &c.execs[i]; e.use == recalled && e.deadline.Before(next) {
			next = e.deadline
		}
	}
	for _, cl := range c.claims {
		if cl.deadline.Before(next) {
			next = cl.deadline
		}
	}
	return next
}

// Tick lets time pass. It is to be called when Next says, or earlier.
func (c *Core) Tick(now time.Time) {
	for i := range c.execs {
		if e := &c.execs[i]; e.use == recalled && !now.Before(e.deadline) {
			*e = executor{}
		}
	}
	for n, cl := range c.claims {
		if !now.Before(cl.deadline) {
			if s := c.scheds[cl.sched]; s != nil {
				s.bid = nil
			}
			c.unclaim(n, cl)
		}
	}
	c.expire(now)
	c.settle(now)
	if now.Sub(c.beat) < beatEvery {
		return
	}
	c.beat = now
	b := wire.WorkerBeat{Running: c.Running()}
	for _, s := range c.sorted() {
		b.Heard = append(b.Heard, wire.Heard{Node: s.id, Ago: now.Sub(s.heard)})
	}
	for _, s := range c.sorted() {
		c.send(s, b)
	}
}
