package rpc

import (
	"context"
	"slices"
	"sync"
)

// connShare is which part of a budget one connection may hold: clients that stop
// reading their answers keep no other waiting as long as they are fewer.
const connShare = 4

// Budget is a number of bytes that many share, fairly by the connections that
// they work for: each may hold a quarter. Those that wait are served in turns,
// and in the order in which they came within one connection; a large demand is
// not starved by small ones.
type Budget struct {
	size int64

	mu    sync.Mutex // guards everything below
	free  int64
	lines map[*conn]*line // that hold or wait for something
	turns []*line         // those that wait, the next to be served first
}

// line is one connection's part. The node's own work has the nil connection's,
// which may hold everything.
type line struct {
	conn    *conn
	limit   int64
	held    int64
	waiting []*demand
}

type demand struct {
	n       int64
	granted chan struct{}
}

// NewBudget makes a Budget of size bytes.
func NewBudget(size int64) *Budget {
	return &Budget{size: size, free: size, lines: make(map[*conn]*line)}
}

// Share is how many bytes one connection may hold.
func (b *Budget) Share() int64 { return b.size / connShare }

// Acquire waits until n bytes are free for the connection that ctx belongs to,
// or ctx ends. More than the connection's share is granted when it holds nothing
// else, and more than the whole budget when nobody holds any of it.
func (b *Budget) Acquire(ctx context.Context, n int64) error {
	if n <= 0 {
		return nil
	}
	b.mu.Lock()
	l := b.line(connOf(ctx))
	if len(b.turns) == 0 && b.enough(n) && l.room(n) {
		b.take(l, n)
		b.mu.Unlock()
		return nil
	}
	d := &demand{n: n, granted: make(chan struct{})}
	l.waiting = append(l.waiting, d)
	if len(l.waiting) == 1 {
		b.turns = append(b.turns, l)
	}
	b.serve()
	b.mu.Unlock()
	select {
	case <-d.granted:
		return nil
	default:
	}
	select {
	case <-d.granted:
		return nil
	case <-ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if i := slices.Index(l.waiting, d); i >= 0 {
		l.waiting = slices.Delete(l.waiting, i, i+1)
		b.tidy(l)
	} else {
		b.giveBack(l, n)
	}
	b.serve()
	return ctx.Err()
}

// Release gives back what Acquire or Take took with the same context, or a part
// of it.
func (b *Budget) Release(ctx context.Context, n int64) {
	if n <= 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.giveBack(b.lines[connOf(ctx)], n)
	b.serve()
}

// Take takes n bytes without waiting, for what is in memory already: there may
// be less than nothing left, and others wait until that is made up for.
func (b *Budget) Take(ctx context.Context, n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.take(b.line(connOf(ctx)), n)
}

func (b *Budget) line(c *conn) *line {
	l := b.lines[c]
	if l == nil {
		l = &line{conn: c, limit: b.size}
		if c != nil {
			l.limit = b.Share()
		}
		b.lines[c] = l
	}
	return l
}

func (b *Budget) take(l *line, n int64) {
	l.held += n
	b.free -= n
}

func (b *Budget) giveBack(l *line, n int64) {
	l.held -= n
	b.free += n
	b.tidy(l)
}

// enough reports whether n more may be taken of the whole.
func (b *Budget) enough(n int64) bool { return n <= b.free || b.free == b.size }

// room reports whether the line may hold n more.
func (l *line) room(n int64) bool { return l.held == 0 || l.held+n <= l.limit }

// tidy forgets a line in which nothing is left.
func (b *Budget) tidy(l *line) {
	if len(l.waiting) > 0 {
		return
	}
	if i := slices.Index(b.turns, l); i >= 0 {
		b.turns = slices.Delete(b.turns, i, i+1)
	}
	if l.held == 0 {
		delete(b.lines, l.conn)
	}
}

// serve grants what can be granted. Lines at their limit are passed over; for
// one that isn't, the others wait until enough is free.
func (b *Budget) serve() {
	for i := 0; i < len(b.turns); {
		l := b.turns[i]
		d := l.waiting[0]
		if !l.room(d.n) {
			i++
			continue
		}
		if !b.enough(d.n) {
			return
		}
		b.take(l, d.n)
		l.waiting = l.waiting[1:]
		close(d.granted)
		b.turns = slices.Delete(b.turns, i, i+1)
		if len(l.waiting) > 0 {
			b.turns = append(b.turns, l)
		}
	}
}
