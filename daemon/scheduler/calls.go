package scheduler

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/home"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/operation"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/wire"
)

// mailbox holds what a waiting call has not read yet: of several states only
// the last.
type mailbox struct {
	wake chan struct{} // holds a token when something was put

	mu      sync.Mutex // guards everything below
	update  wire.Update
	pending bool
	gone    bool
}

func (m *mailbox) put(u wire.Update, gone bool) {
	m.mu.Lock()
	m.update, m.pending, m.gone = u, true, gone
	m.mu.Unlock()
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

func (m *mailbox) take() (u wire.Update, pending, gone bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	u, pending, gone = m.update, m.pending, m.gone
	m.update, m.pending = wire.Update{}, false
	return u, pending, gone
}

// enter makes a call and its mailbox.
func (s *Service) enter(event func(c *home.Core, now time.Time, call uint64)) (uint64, *mailbox) {
	m := &mailbox{wake: make(chan struct{}, 1)}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastCall++
	n := s.lastCall
	if s.closed {
		return n, m
	}
	s.calls[n] = m
	s.stepLocked(func(c *home.Core, now time.Time) { event(c, now, n) })
	return n, m
}

func (s *Service) leave(n uint64) {
	s.step(func(c *home.Core, now time.Time) {
		c.Detach(now, n)
		delete(s.calls, n)
	})
}

// Execute sends the states of r's operation until it is done: the first at
// once, and a repeat at least every 30 s. When ctx ends or send fails it returns
// that error, and the operation goes on without this caller.
func (s *Service) Execute(ctx context.Context, r Request, send func(Update) error) error {
	n, m := s.enter(func(c *home.Core, now time.Time, n uint64) { c.Execute(now, n, rand.Uint64(), &r) })
	defer s.leave(n)
	return s.follow(ctx, m, send)
}

// Wait does the same for an operation that is there already. One that no
// scheduler knows is ErrNotFound.
func (s *Service) Wait(ctx context.Context, name string, send func(Update) error) error {
	parsed, err := operation.Parse(name)
	if err != nil {
		return ErrNotFound
	}
	n, m := s.enter(func(c *home.Core, now time.Time, n uint64) { c.Wait(now, n, parsed) })
	defer s.leave(n)
	return s.follow(ctx, m, send)
}

func (s *Service) follow(ctx context.Context, m *mailbox, send func(Update) error) error {
	repeat := time.NewTicker(repeatEvery)
	defer repeat.Stop()
	var last Update
	for {
		select {
		case <-m.wake:
			u, pending, gone := m.take()
			if gone {
				return ErrNotFound
			}
			if !pending {
				continue
			}
			last = u
			repeat.Reset(repeatEvery)
		case <-repeat.C:
			if last.Name == "" {
				continue
			}
		case <-ctx.Done():
			return ctx.Err()
		case <-s.stopped:
			return ErrStopping
		}
		if err := send(last); err != nil || last.Done {
			return err
		}
	}
}

// Operation is how an operation stands, or ErrNotFound.
func (s *Service) Operation(ctx context.Context, name string) (Update, error) {
	return s.once(ctx, name, (*home.Core).Look)
}

// Cancel ends an operation: the action goes on if others wait for it. One that
// no scheduler knows is ErrNotFound.
func (s *Service) Cancel(ctx context.Context, name string) error {
	_, err := s.once(ctx, name, (*home.Core).Cancel)
	return err
}

func (s *Service) once(ctx context.Context, name string, ask func(*home.Core, time.Time, uint64, operation.Name)) (Update, error) {
	parsed, err := operation.Parse(name)
	if err != nil {
		return Update{}, ErrNotFound
	}
	n, m := s.enter(func(c *home.Core, now time.Time, n uint64) { ask(c, now, n, parsed) })
	defer s.leave(n)
	select {
	case <-m.wake:
		u, _, gone := m.take()
		if gone {
			return Update{}, ErrNotFound
		}
		return u, nil
	case <-ctx.Done():
		return Update{}, ctx.Err()
	case <-s.stopped:
		return Update{}, ErrStopping
	}
}

// List returns the operations that this scheduler owns, in no order.
func (s *Service) List(context.Context) ([]Update, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var us []Update
	for u := range s.core.List {
		us = append(us, u)
	}
	return us, nil
}
