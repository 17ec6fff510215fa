// Package queue owns the order in which waiting tasks are served.
//
// Lower priority values go first. Within a priority, the principal goes first
// that has had the least of the executors, and of its invocations again the one
// that has had the least; within an invocation, whoever arrived first. Tasks
// wait per platform, so that a worker is never shown what it cannot run.
//
// It is a pure data structure: time comes with the calls, and no order depends
// on a map's.
package queue

import (
	"math"
	"math/bits"
	"slices"
	"time"
)

// Item is one waiting or running task, kept by its owner. The exported fields
// are set before the first Push and, but for Value, not changed while queued.
type Item[T any] struct {
	Value      T
	Platform   string // match.Platform.Key
	Principal  string
	Invocation string
	Priority   int32
	Seq        uint64 // order of arrival
	Arrived    time.Time

	prev, next *Item[T]
	line       *line[T] // nil unless queued
	level      *level[T]
	on         *platform[T]
}

// Queued reports whether the item waits.
func (it *Item[T]) Queued() bool { return it.line != nil }

// Queue is the waiting tasks, and what was used by those that ran. The zero
// Queue is empty and ready.
type Queue[T any] struct {
	n         int
	root      share
	platforms []*platform[T] // those with waiting items
}

type platform[T any] struct {
	key    string
	n      int
	levels []*level[T] // by priority; none empty
}

type level[T any] struct {
	priority int32
	lines    []*line[T] // none empty
}

// line is one invocation's waiting items of one platform and priority, by Seq.
type line[T any] struct {
	principal, invocation string
	pshare, ishare        *share
	head, tail            *Item[T]
}

// Len is how many items wait.
func (q *Queue[T]) Len() int { return q.n }

// Waiting yields the platforms that have waiting items.
func (q *Queue[T]) Waiting(yield func(platform string, n int) bool) {
	for _, p := range q.platforms {
		if !yield(p.key, p.n) {
			return
		}
	}
}

// Push makes it wait, at the place its Seq gives it.
func (q *Queue[T]) Push(it *Item[T], now time.Time) {
	p := q.platform(it.Platform)
	l := p.level(it.Priority)
	ln := l.line(it)
	if ln == nil {
		t := now.UnixNano()
		ps := q.root.enter(it.Principal, t)
		ln = &line[T]{
			principal: it.Principal, invocation: it.Invocation,
			pshare: ps, ishare: ps.enter(it.Invocation, t),
		}
		l.lines = append(l.lines, ln)
	}
	ln.insert(it)
	it.line, it.level, it.on = ln, l, p
	ln.pshare.waiting++
	ln.ishare.waiting++
	p.n++
	q.n++
}

// Remove ends it's waiting, if it waits.
func (q *Queue[T]) Remove(it *Item[T]) {
	ln, l, p := it.line, it.level, it.on
	if ln == nil {
		return
	}
	if it.prev != nil {
		it.prev.next = it.next
	} else {
		ln.head = it.next
	}
	if it.next != nil {
		it.next.prev = it.prev
	} else {
		ln.tail = it.prev
	}
	it.prev, it.next, it.line, it.level, it.on = nil, nil, nil, nil, nil
	ln.pshare.waiting--
	ln.ishare.waiting--
	p.n--
	q.n--
	if ln.head != nil {
		return
	}
	l.lines = drop(l.lines, ln)
	if len(l.lines) == 0 {
		p.levels = slices.Delete(p.levels, slices.Index(p.levels, l), slices.Index(p.levels, l)+1)
	}
	if len(p.levels) == 0 {
		q.platforms = drop(q.platforms, p)
	}
}

// drop removes v by moving the last element to its place.
func drop[E comparable](s []E, v E) []E {
	i, last := slices.Index(s, v), len(s)-1
	s[i] = s[last]
	var zero E
	s[last] = zero
	return s[:last]
}

// Start charges the item's principal and invocation for an attempt.
func (q *Queue[T]) Start(it *Item[T], now time.Time) {
	t := now.UnixNano()
	ps := q.root.enter(it.Principal, t)
	is := ps.enter(it.Invocation, t)
	ps.start(t)
	is.start(t)
}

// Stop ends an attempt that was charged at started.
func (q *Queue[T]) Stop(it *Item[T], started, now time.Time) {
	ps := q.root.kids[it.Principal]
	ps.stop(now.UnixNano(), started.UnixNano())
	ps.kids[it.Invocation].stop(now.UnixNano(), started.UnixNano())
}

// Sweep forgets principals and invocations that left; to be called now and then.
func (q *Queue[T]) Sweep(now time.Time) { q.root.sweep(now.UnixNano()) }

// lookPast is how far into a line Best looks past what skip refuses.
const lookPast = 8

// Best is the item to be served next among the platforms that fit, or nil. An
// item for which skip (which may be nil) holds is passed over.
func (q *Queue[T]) Best(now time.Time, fits func(platform string) bool, skip func(*Item[T]) bool) *Item[T] {
	t := now.UnixNano()
	var best *Item[T]
	for _, p := range q.platforms {
		if !fits(p.key) {
			continue
		}
		for _, l := range p.levels {
			if best != nil && l.priority > best.Priority {
				break
			}
			for _, ln := range l.lines {
				if it := ln.first(skip); it != nil && (best == nil || before(it, ln, best, t)) {
					best = it
				}
			}
			if best != nil && best.Priority <= l.priority {
				break
			}
		}
	}
	return best
}

func (ln *line[T]) first(skip func(*Item[T]) bool) *Item[T] {
	it := ln.head
	for range lookPast {
		if it == nil || skip == nil || !skip(it) {
			return it
		}
		it = it.next
	}
	return nil
}

// before reports whether it, of line ln, is to be served before best.
func before[T any](it *Item[T], ln *line[T], best *Item[T], now int64) bool {
	o := best.line
	if it.Priority != best.Priority {
		return it.Priority < best.Priority
	}
	if ln.pshare != o.pshare {
		if a, b := ln.pshare.usage(now), o.pshare.usage(now); a != b {
			return a < b
		}
	}
	if ln.ishare != o.ishare {
		if a, b := ln.ishare.usage(now), o.ishare.usage(now); a != b {
			return a < b
		}
	}
	return it.Seq < best.Seq
}

// Class is how urgent an item is, in steps coarse enough to be compared
// between schedulers and not to change at each start.
type Class struct {
	Priority   int32
	Principal  uint32 // steps of how much the principal runs now
	Invocation uint32 // and the invocation
	Arrived    int64  // in whole Unix seconds
}

// Before reports whether c is more urgent than d.
func (c Class) Before(d Class) bool {
	switch {
	case c.Priority != d.Priority:
		return c.Priority < d.Priority
	case c.Principal != d.Principal:
		return c.Principal < d.Principal
	case c.Invocation != d.Invocation:
		return c.Invocation < d.Invocation
	}
	return c.Arrived < d.Arrived
}

// Class is the class of an item that waits.
func (q *Queue[T]) Class(it *Item[T]) Class {
	return Class{
		Priority:   it.Priority,
		Principal:  uint32(bits.Len(uint(it.line.pshare.running))),
		Invocation: uint32(bits.Len(uint(it.line.ishare.running))),
		Arrived:    it.Arrived.Unix(),
	}
}

// Oldest is when the longest waiting item arrived; false when none waits.
func (q *Queue[T]) Oldest() (time.Time, bool) {
	seq, at := uint64(math.MaxUint64), time.Time{}
	for _, p := range q.platforms {
		for _, l := range p.levels {
			for _, ln := range l.lines {
				if ln.head.Seq < seq {
					seq, at = ln.head.Seq, ln.head.Arrived
				}
			}
		}
	}
	return at, q.n > 0
}

func (q *Queue[T]) platform(key string) *platform[T] {
	for _, p := range q.platforms {
		if p.key == key {
			return p
		}
	}
	p := &platform[T]{key: key}
	q.platforms = append(q.platforms, p)
	return p
}

func (p *platform[T]) level(priority int32) *level[T] {
	i, found := slices.BinarySearchFunc(p.levels, priority, func(l *level[T], v int32) int {
		switch {
		case l.priority < v:
			return -1
		case l.priority > v:
			return 1
		}
		return 0
	})
	if !found {
		p.levels = slices.Insert(p.levels, i, &level[T]{priority: priority})
	}
	return p.levels[i]
}

func (l *level[T]) line(it *Item[T]) *line[T] {
	for _, ln := range l.lines {
		if ln.invocation == it.Invocation && ln.principal == it.Principal {
			return ln
		}
	}
	return nil
}

// insert looks for the place from the end, where new items belong; those that
// come back from a lost worker mostly belong at the front.
func (ln *line[T]) insert(it *Item[T]) {
	at := ln.tail
	if ln.head != nil && it.Seq < ln.head.Seq {
		at = nil
	}
	for at != nil && at.Seq > it.Seq {
		at = at.prev
	}
	it.prev = at
	if at == nil {
		it.next, ln.head = ln.head, it
	} else {
		it.next, at.next = at.next, it
	}
	if it.next == nil {
		ln.tail = it
	} else {
		it.next.prev = it
	}
}
