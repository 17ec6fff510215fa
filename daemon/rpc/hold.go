package rpc

import (
	"context"
	"sync"

	"google.golang.org/grpc/mem"
)

// Hold is message, to be sent over the connection that the call of ctx came by,
// with release called once its bytes have left or never will. SendMsg and
// handlers return long before that when a client is slow to read: what they
// sent waits in memory.
func Hold(ctx context.Context, message any, release func()) any {
	h := &holding{message: message, release: release}
	if h.conn = connOf(ctx); h.conn != nil && !h.conn.add(h) {
		h.once.Do(release)
	}
	return h
}

type holding struct {
	message any
	conn    *conn // may be nil
	once    sync.Once
	release func()
}

// marshal appends an empty buffer that gRPC frees after the message's own.
func (h *holding) marshal(c Codec) (mem.BufferSlice, error) {
	out, err := c.Marshal(h.message)
	if err != nil {
		h.free()
		return nil, err
	}
	h.message = nil                         // its bytes are there once, until they have left
	none := make([]byte, 0, 1<<minPooled+1) // smaller ones are not reported as freed
	return append(out, mem.NewBuffer(&none, (*freed)(h))), nil
}

func (h *holding) free() {
	if h.conn != nil {
		h.conn.drop(h)
	}
	h.once.Do(h.release)
}

// freed is the pool that the empty buffer goes back to.
type freed holding

func (f *freed) Get(n int) *[]byte { return pool.Get(n) }
func (f *freed) Put(*[]byte)       { (*holding)(f).free() }
