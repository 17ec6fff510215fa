package rpc

import (
	"context"
	"sync"

	"google.golang.org/grpc/stats"
)

// conn is a client's connection, to which memory is charged.
type conn struct {
	mu    sync.Mutex // guards what follows
	ended bool
	held  map[*holding]struct{} // for messages that have not left
}

type connKey struct{}

// connOf is the connection that a call came over; nil for the node's own work.
func connOf(ctx context.Context) *conn {
	c, _ := ctx.Value(connKey{}).(*conn)
	return c
}

// connections is a stats.Handler that tells calls their connection.
type connections struct{}

func (connections) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context {
	return context.WithValue(ctx, connKey{}, &conn{held: make(map[*holding]struct{})})
}

func (connections) HandleConn(ctx context.Context, e stats.ConnStats) {
	if _, ok := e.(*stats.ConnEnd); ok {
		connOf(ctx).end()
	}
}

func (connections) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

// HandleRPC sees each message that has been given to the transport. Of a call
// that was over by then the transport may have dropped it without a word; of one
// that wasn't, it reports when the message has left or is dropped.
func (connections) HandleRPC(ctx context.Context, e stats.RPCStats) {
	if sent, ok := e.(*stats.OutPayload); ok && ctx.Err() != nil {
		if h, ok := sent.Payload.(*holding); ok {
			h.free()
		}
	}
}

// end gives back what is held for messages that now will never leave: gRPC
// drops them without a word.
func (c *conn) end() {
	c.mu.Lock()
	c.ended = true
	held := c.held
	c.held = nil
	c.mu.Unlock()
	for h := range held {
		h.once.Do(h.release)
	}
}

// add reports whether the connection is still there to send h's message.
func (c *conn) add(h *holding) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.ended {
		c.held[h] = struct{}{}
	}
	return !c.ended
}

func (c *conn) drop(h *holding) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.held, h)
}
