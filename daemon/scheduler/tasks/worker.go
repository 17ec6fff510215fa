package tasks

import (
	"cmp"
	"slices"
	"time"

	"github.com/cespare/xxhash/v2"
	"google.golang.org/grpc/codes"

	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/match"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/operation"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/wire"
)

// worker is one that this scheduler has heard.
type worker struct {
	id, name string
	hash     uint64 // of the name
	pool     *pool

	session uint64 // 0: not connected
	heard   time.Time
	broken  time.Time // when the connection broke

	executors int
	running   int // of all schedulers' tasks, as it last said
	lent      []wire.Lend
	bid       *wire.Bid // that stands there
	bidAt     time.Time
	attempts  map[wire.Ref]*attempt
}

// usable: it can be given new work.
func (w *worker) usable(now time.Time) bool {
	return w.session != 0 && now.Sub(w.heard) < quietAfter
}

func (c *Core) send(w *worker, m wire.ToWorker) {
	if w.session != 0 {
		c.emit(Send{Worker: w.id, Session: w.session, Msg: m})
	}
}

// WorkerUp is a worker's new stream, opened by its hello. Sessions are numbered
// from 1 and never used again.
func (c *Core) WorkerUp(now time.Time, session uint64, h wire.WorkerHello) {
	for _, old := range sortedWorkers(c.all()) {
		// Another start of the same worker: what that one ran is gone.
		if old.name == h.Name && old.id != h.ID {
			c.lose(now, old, false)
		}
	}
	w := c.workers[h.ID]
	if w == nil {
		w = &worker{id: h.ID, name: h.Name, hash: xxhash.Sum64String(h.Name), attempts: make(map[wire.Ref]*attempt)}
		c.workers[h.ID] = w
	}
	c.disconnect(now, w)
	w.session, w.heard, w.executors = session, now, h.Executors
	w.pool = c.poolOf(match.NewProfile(h.Pool, h.Properties))
	w.pool.workers[w] = struct{}{}
	w.pool.unbid[w] = struct{}{}
	c.reconcile(now, w, h.Attempts)
	c.rebid = true
	c.flushBids(now)
}

func (c *Core) all() map[*worker]struct{} {
	set := make(map[*worker]struct{}, len(c.workers))
	for _, w := range c.workers {
		set[w] = struct{}{}
	}
	return set
}

func (c *Core) poolOf(p *match.Profile) *pool {
	pl := c.pools[p.Key()]
	if pl == nil {
		pl = &pool{profile: p, workers: make(map[*worker]struct{}), unbid: make(map[*worker]struct{})}
		c.pools[p.Key()] = pl
	}
	return pl
}

// reconcile holds what we placed on the worker against what it has.
func (c *Core) reconcile(now time.Time, w *worker, has []wire.Held) {
	listed := make(map[wire.Ref]wire.Held, len(has))
	for _, h := range has {
		listed[h.Ref] = h
	}
	for _, a := range sortedAttempts(w.attempts) {
		h, ok := listed[a.ref]
		switch {
		case !ok: // the offer, or what it became, never arrived or was lost
			c.end(now, a)
			c.requeue(now, a.t)
		case h.Owner != c.cfg.Self: // our claim to it may have been lost
			c.send(w, wire.Own{Ref: a.ref, From: a.from})
		case h.State >= wire.Started && !a.started && a.killedAt.IsZero():
			a.at = h.StartedAt
			c.start(a)
		case !a.killedAt.IsZero(): // the order may have been lost
			c.send(w, wire.Kill{Ref: a.ref})
		}
		a.withdrawing = false
	}
	for _, h := range has {
		if h.Owner == c.cfg.Self && w.attempts[h.Ref] == nil {
			c.returned(now, w, h)
		}
	}
}

// returned is an attempt that had been given up.
func (c *Core) returned(now time.Time, w *worker, h wire.Held) {
	t := c.byID[h.Task]
	switch {
	case h.State == wire.Finished && t != nil && t.state != done:
		// Its Done follows, and may be the first.
	case t == nil || t.state == done:
		c.send(w, wire.Kill{Ref: h.Ref})
		c.send(w, wire.Ack{Ref: h.Ref})
	default:
		c.take(now, t, w, h)
	}
}

// take makes an attempt that runs already the task's.
func (c *Core) take(now time.Time, t *task, w *worker, h wire.Held) {
	c.q.Remove(&t.Item)
	delete(c.held, t)
	if h.Task == t.id {
		t.last = max(t.last, h.Attempt)
	}
	c.bind(now, &attempt{
		t: t, w: w, ref: h.Ref, from: h.Owner, granted: now, started: h.State == wire.Started, at: h.StartedAt,
	})
}

// Adopt makes an attempt ours that a worker made for a scheduler that is gone.
// It reports false when the worker is not connected.
func (c *Core) Adopt(now time.Time, workerID string, h wire.Held) bool {
	w := c.workers[workerID]
	if w == nil || w.session == 0 || w.attempts[h.Ref] != nil {
		return false
	}
	was, err := operation.ParseTask(h.Task)
	if err != nil {
		return false
	}
	t := c.byID[h.Task]
	if t == nil && !h.DoNotCache {
		t = c.byKey[was.Key]
	}
	if t == nil {
		id := was
		id.Owner = c.cfg.Self
		t = c.create(now, id, h.DoNotCache)
	}
	if c.byID[h.Task] == nil {
		c.byID[h.Task] = t
		t.aliases = append(t.aliases, h.Task)
	}
	if t.state == done {
		c.send(w, wire.Kill{Ref: h.Ref})
	} else {
		c.take(now, t, w, h)
	}
	c.send(w, wire.Own{Ref: h.Ref, From: h.Owner})
	return true
}

// WorkerDown is the end of a worker's stream.
func (c *Core) WorkerDown(now time.Time, id string, session uint64) {
	if w := c.workers[id]; w != nil && w.session == session {
		c.disconnect(now, w)
	}
}

func (c *Core) disconnect(now time.Time, w *worker) {
	if w.session == 0 {
		return
	}
	w.session, w.broken = 0, now
	w.lent, w.bid = w.lent[:0], nil
	delete(c.lenders, w)
	delete(w.pool.workers, w)
	delete(w.pool.unbid, w)
	w.pool.seen = now
}

// WorkerGone says that the worker's port refuses connections: it is dead.
func (c *Core) WorkerGone(now time.Time, id string) {
	if w := c.workers[id]; w != nil && w.session == 0 {
		c.lose(now, w, false)
		c.flushBids(now)
	}
}

// lose gives a worker up, or takes it that it has left, and requeues what it had.
func (c *Core) lose(now time.Time, w *worker, left bool) {
	if w.session != 0 {
		c.emit(Close{Worker: w.id, Session: w.session, Left: left})
	}
	c.disconnect(now, w)
	delete(c.workers, w.id)
	for _, a := range sortedAttempts(w.attempts) {
		c.end(now, a)
		t := a.t
		if a.started && t.state != done {
			t.lost = append(t.lost, w.name)
		}
		c.requeue(now, t)
	}
}

func sortedAttempts(set map[wire.Ref]*attempt) []*attempt {
	as := make([]*attempt, 0, len(set))
	for _, a := range set {
		as = append(as, a)
	}
	slices.SortFunc(as, func(a, b *attempt) int {
		if a.t.Seq != b.t.Seq {
			return cmp.Compare(a.t.Seq, b.t.Seq)
		}
		if c := cmp.Compare(a.ref.Attempt, b.ref.Attempt); c != 0 {
			return c
		}
		return cmp.Compare(a.ref.Task, b.ref.Task)
	})
	return as
}

// FromWorker is what a worker said over the stream of that session.
func (c *Core) FromWorker(now time.Time, id string, session uint64, m wire.FromWorker) {
	w := c.workers[id]
	if w == nil || w.session != session {
		return
	}
	w.heard = now
	switch m := m.(type) {
	case wire.WorkerBeat:
		w.running = m.Running
	case wire.Lend:
		c.lend(now, w, m)
	case wire.Recall:
		c.recall(w, m)
	case wire.Claim:
		c.claim(now, w, m)
	case wire.AttemptStarted:
		if a := w.attempts[m.Ref]; a != nil && !a.started {
			a.at = m.At
			c.start(a)
		}
	case wire.Refuse:
		// Of a claim that was answered too late the bid is void, too.
		c.unbid(w)
		c.back(now, w, m.Ref)
	case wire.Withdrawn:
		c.back(now, w, m.Ref)
	case wire.Done:
		c.done(now, w, m)
	case wire.Bye:
		for _, a := range sortedAttempts(w.attempts) {
			a.started = false // it ended in order, and took nobody along
		}
		c.lose(now, w, true)
	}
	c.flushBids(now)
}

// back is an attempt that the worker never began.
func (c *Core) back(now time.Time, w *worker, ref wire.Ref) {
	if a := w.attempts[ref]; a != nil {
		c.end(now, a)
		c.requeue(now, a.t)
	}
}

// done is the end of an attempt. The first response is the task's result.
func (c *Core) done(now time.Time, w *worker, m wire.Done) {
	c.send(w, wire.Ack{Ref: m.Ref})
	a := w.attempts[m.Ref]
	t := c.byID[m.Task]
	if a != nil {
		t = a.t
		c.end(now, a)
	}
	if t == nil || t.state == done {
		return
	}
	if m.Code == codes.OK {
		t.worker = w.name
		c.finish(now, t, m.Response, nil)
		return
	}
	if a == nil {
		return
	}
	if a.killedAt.IsZero() {
		t.troubles++
		t.avoid, t.avoidTill = w.id, now.Add(avoidFor)
	}
	if t.troubles >= troubleAt && len(t.attempts) == 0 {
		c.finish(now, t, nil, &wire.Error{Status: m.Code, Text: m.Message})
		return
	}
	c.requeue(now, t)
}
