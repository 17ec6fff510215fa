package wire

import "sync"

const (
	// frameSize is where a frame ends; a single larger item makes a larger one.
	frameSize = 4 << 20
	// queueSize bounds what waits for one stream: one that is further behind
	// is better begun anew.
	queueSize = 128 << 20
)

// Outbox gathers what one stream's writer sends next: what is put while a frame
// is on its way travels in the next one. It is safe for concurrent use.
type Outbox[T any] struct {
	wake chan struct{} // holds a token when there may be something to take

	mu    sync.Mutex // guards everything below
	items []T
	bytes int
	sent  chan struct{} // closed when a Take finds nothing; nil while nobody asks
}

// NewOutbox is an empty one.
func NewOutbox[T any]() *Outbox[T] { return &Outbox[T]{wake: make(chan struct{}, 1)} }

// Put adds v, and never waits. It reports false when too much waits already.
func (o *Outbox[T]) Put(v T) bool {
	o.mu.Lock()
	ok := o.bytes < queueSize
	if ok {
		o.items = append(o.items, v)
		o.bytes += size(v)
	}
	o.mu.Unlock()
	select {
	case o.wake <- struct{}{}:
	default:
	}
	return ok
}

// Ready yields a token when there may be something to take.
func (o *Outbox[T]) Ready() <-chan struct{} { return o.wake }

// Take appends to buf the items of one frame, none when there are none.
func (o *Outbox[T]) Take(buf []T) []T {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.items) == 0 {
		if o.sent != nil {
			close(o.sent)
			o.sent = nil
		}
		return buf
	}
	n, bytes := 0, 0
	for n < len(o.items) {
		s := size(o.items[n])
		if n > 0 && bytes+s > frameSize {
			break
		}
		n, bytes = n+1, bytes+s
	}
	buf = append(buf, o.items[:n]...)
	rest := copy(o.items, o.items[n:])
	clear(o.items[rest:])
	o.items = o.items[:rest]
	o.bytes -= bytes
	return buf
}

// Sent is closed once the writer has come back and found nothing more to send.
func (o *Outbox[T]) Sent() <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.sent == nil {
		o.sent = make(chan struct{})
	}
	select {
	case o.wake <- struct{}{}: // a writer that waits comes back at once
	default:
	}
	return o.sent
}

// size is about what v takes in a frame, and in memory.
func size(v any) int {
	const some = 512
	switch v := v.(type) {
	case Offer:
		return some + len(v.Task.Metadata) + len(v.Task.ActionBlob) + len(v.Task.CommandBlob) + len(v.Task.RootBlob)
	case Submit:
		r := v.Request
		return some + len(r.Metadata) + len(r.ActionBlob) + len(r.CommandBlob) + len(r.RootBlob)
	case Answer:
		return some + len(v.Update.Response)
	case Done:
		return some + len(v.Response)
	case Inventory:
		return some + some*len(v.Attempts)
	case Keeps:
		return some + some*len(v.Keys)
	}
	return some
}
