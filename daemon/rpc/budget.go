package rpc

import (
	"context"
	"slices"
	"sync"
)

// A connection may hold a quarter of what is left for the others. So one alone
// gets a fifth; each further one that takes what it can and gives nothing back,
// as clients do that stop reading, gets less; and something is left for the next.
const (
	connPart  = 4
	connShare = connPart + 1
)

// smallPart is which part of what is free a demand may have that passes one for
// which too little is.
const smallPart = 8

// Budget is a number of bytes that many share, fairly by the connections that
// they work for. Those that wait are served in turns, and in the order in which
// they came within one connection.
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

// Share is how many bytes one connection may hold beside no other.
func (b *Budget) Share() int64 { return b.size / connShare }

// Acquire waits until n bytes are free for the connection that ctx belongs to,
// or ctx ends. More than a connection may hold is granted when nobody holds any
// of the budget.
func (b *Budget) Acquire(ctx context.Context, n int64) error {
	if n <= 0 {
		return nil
	}
	b.mu.Lock()
	l := b.line(connOf(ctx))
	if len(b.turns) == 0 && b.fits(l, n) {
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
		l = &line{conn: c}
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

// fits reports whether the line may hold n more now.
func (b *Budget) fits(l *line, n int64) bool {
	switch {
	case b.free == b.size: // more than there is, too
		return true
	case l.conn == nil:
		return n <= b.free
	}
	return l.held+n <= b.free/connPart
}

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

// serve grants what can be granted. Lines that hold all they may are passed over;
// where one holds nothing, and too little is free for it, only small demands are
// granted until enough is.
func (b *Budget) serve() {
	short := false
	for i := 0; i < len(b.turns); {
		l := b.turns[i]
		d := l.waiting[0]
		if !b.fits(l, d.n) || short && d.n > b.free/smallPart {
			short = short || l.held == 0
			i++
			continue
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
