package rpc

import (
	"context"

	"golang.org/x/sync/semaphore"
)

// Budget is a number of bytes that many share. Whoever asks first is served
// first, so that a large demand is not starved by small ones.
type Budget struct {
	size int64
	sem  *semaphore.Weighted
}

// NewBudget makes a Budget of size bytes.
func NewBudget(size int64) *Budget {
	return &Budget{size: size, sem: semaphore.NewWeighted(size)}
}

// Acquire waits until n bytes are free, or ctx ends. More than the whole budget
// is granted when nobody else holds any of it.
func (b *Budget) Acquire(ctx context.Context, n int64) error {
	return b.sem.Acquire(ctx, min(n, b.size))
}

// Release gives back what Acquire was asked for.
func (b *Budget) Release(n int64) { b.sem.Release(min(n, b.size)) }
