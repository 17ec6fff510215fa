package rpc

import (
	"context"
	"sync"
)

const (
	// frameSize is where a frame ends; a single larger message makes a larger one.
	frameSize = 4 << 20
	// queueSize bounds the bytes that wait for one stream's writer.
	queueSize = 8 << 20
	// maxBody leaves room in a message for what surrounds a body.
	maxBody = MaxMessage - 64<<10
	// itemSize is what an item counts beyond its body.
	itemSize = 64
)

// outbox gathers what one stream's writer sends next: take returns at once
// everything that was put while the frame before was being written.
type outbox[T any] struct {
	wake chan struct{}   // holds one token when there may be something to take
	done <-chan struct{} // the stream has ended

	mu    sync.Mutex // guards everything below
	items []T
	sizes []int
	bytes int
	space chan struct{} // closed at the next take; nil while nobody waits
}

func newOutbox[T any](done <-chan struct{}) *outbox[T] {
	return &outbox[T]{wake: make(chan struct{}, 1), done: done}
}

// put waits for room. It reports false when ctx or the stream ended first.
func (o *outbox[T]) put(ctx context.Context, v T, size int) bool {
	for {
		o.mu.Lock()
		if o.bytes == 0 || o.bytes+size <= queueSize {
			o.pushLocked(v, size)
			o.mu.Unlock()
			o.signal()
			return true
		}
		if o.space == nil {
			o.space = make(chan struct{})
		}
		space := o.space
		o.mu.Unlock()
		select {
		case <-space:
		case <-o.done:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

// push adds v even where there is no room: for the few and small items whose
// number is bounded otherwise.
func (o *outbox[T]) push(v T) {
	o.mu.Lock()
	o.pushLocked(v, itemSize)
	o.mu.Unlock()
	o.signal()
}

func (o *outbox[T]) pushLocked(v T, size int) {
	o.items = append(o.items, v)
	o.sizes = append(o.sizes, size)
	o.bytes += size
}

func (o *outbox[T]) signal() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// take appends to buf the items of one frame, without waiting: none when there
// are none.
func (o *outbox[T]) take(buf []T) []T {
	o.mu.Lock()
	defer o.mu.Unlock()
	n, bytes := 0, 0
	for n < len(o.items) && (n == 0 || bytes+o.sizes[n] <= frameSize) {
		bytes += o.sizes[n]
		n++
	}
	if n == 0 {
		return buf
	}
	buf = append(buf, o.items[:n]...)
	rest := copy(o.items, o.items[n:])
	clear(o.items[rest:])
	o.items = o.items[:rest]
	o.sizes = o.sizes[:copy(o.sizes, o.sizes[n:])]
	o.bytes -= bytes
	if o.space != nil {
		close(o.space)
		o.space = nil
	}
	return buf
}
