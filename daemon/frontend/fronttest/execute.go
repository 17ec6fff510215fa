package fronttest

import (
	"context"
	"maps"
	"slices"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/remex-build/terraform-provider-remex/daemon/actioncache"
	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/frontend"
)

// ActionCache keeps results. The zero ActionCache is empty and ready.
type ActionCache struct {
	mu      sync.Mutex // guards everything below
	entries map[actioncache.Key][]byte
	err     error
}

// Fail makes every later call fail with err; nil ends that.
func (c *ActionCache) Fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
}

// Get implements frontend.ActionCache.
func (c *ActionCache) Get(_ context.Context, k actioncache.Key) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return nil, c.err
	}
	if r, ok := c.entries[k]; ok {
		return r, nil
	}
	return nil, blob.ErrNotFound
}

// Put implements frontend.ActionCache.
func (c *ActionCache) Put(_ context.Context, k actioncache.Key, r []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	if c.entries == nil {
		c.entries = map[actioncache.Key][]byte{}
	}
	c.entries[k] = r
	return nil
}

// Executor plays what its script says. The zero Executor refuses to execute.
type Executor struct {
	// Script serves Execute, and Wait for the operations of Known.
	Script func(ctx context.Context, r frontend.Request, send func(frontend.Update) error) error

	mu        sync.Mutex // guards everything below
	requests  []frontend.Request
	known     map[string]frontend.Update
	cancelled []string
}

var errUnknown = status.Error(codes.NotFound, "no such operation")

// Know plants an operation.
func (e *Executor) Know(u frontend.Update) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.known == nil {
		e.known = map[string]frontend.Update{}
	}
	e.known[u.Name] = u
}

// Requests are those that Execute got.
func (e *Executor) Requests() []frontend.Request {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.requests)
}

// Cancelled are the names that Cancel got.
func (e *Executor) Cancelled() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.cancelled)
}

// Execute implements frontend.Executor.
func (e *Executor) Execute(ctx context.Context, r frontend.Request, send func(frontend.Update) error) error {
	e.mu.Lock()
	e.requests = append(e.requests, r)
	e.mu.Unlock()
	if e.Script == nil {
		return status.Error(codes.Unavailable, "nobody executes here")
	}
	return e.Script(ctx, r, send)
}

// Wait implements frontend.Executor: it sends what is known, and waits for ctx
// to end if that is not the end.
func (e *Executor) Wait(ctx context.Context, name string, send func(frontend.Update) error) error {
	u, err := e.Operation(ctx, name)
	if err != nil {
		return err
	}
	if err := send(u); err != nil || u.Done {
		return err
	}
	<-ctx.Done()
	return ctx.Err()
}

// Operation implements frontend.Executor.
func (e *Executor) Operation(_ context.Context, name string) (frontend.Update, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	u, ok := e.known[name]
	if !ok {
		return u, errUnknown
	}
	return u, nil
}

// Cancel implements frontend.Executor.
func (e *Executor) Cancel(ctx context.Context, name string) error {
	if _, err := e.Operation(ctx, name); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.cancelled = append(e.cancelled, name)
	return nil
}

// List implements frontend.Executor.
func (e *Executor) List(context.Context) ([]frontend.Update, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Collect(maps.Values(e.known)), nil
}
