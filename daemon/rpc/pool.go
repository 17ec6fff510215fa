package rpc

import (
	"math/bits"
	"sync"

	"google.golang.org/grpc/mem"
)

// The sizes of pooled buffers are the powers of two from that of the smallest
// that gRPC hands back to what disks read at a time.
const (
	minPooled = 10 // 1 KiB
	maxPooled = 20 // 1 MiB
)

// buffers are the pools of one process, by size. Unlike gRPC's own they do not
// clear a buffer before it is used again, which took a sixth of a scheduler's
// time while blobs passed through: whoever takes one fills it first, and passes
// on no more than that.
type buffers [maxPooled - minPooled + 1]sync.Pool

var pool mem.BufferPool = new(buffers)

// Pool is where the buffers of blobs come from and go to.
func Pool() mem.BufferPool { return pool }

// Get returns a buffer of n bytes, with any content.
func (p *buffers) Get(n int) *[]byte {
	k := max(bits.Len(uint(max(n, 1)-1)), minPooled)
	if k > maxPooled {
		b := make([]byte, n)
		return &b
	}
	if b, ok := p[k-minPooled].Get().(*[]byte); ok {
		*b = (*b)[:n]
		return b
	}
	b := make([]byte, n, 1<<k)
	return &b
}

// Put takes a buffer back. One of another size than those above is dropped.
func (p *buffers) Put(b *[]byte) {
	n := cap(*b)
	k := bits.Len(uint(n)) - 1
	if k < minPooled || k > maxPooled || n != 1<<k {
		return
	}
	p[k-minPooled].Put(b)
}
