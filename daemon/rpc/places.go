package rpc

import (
	"context"
	"sync"
)

// placeShare is which part of the places one connection may have.
const placeShare = 2

// Places are how many calls may be open at a time, of which one connection may
// have half. Each costs memory even while it waits: so nobody waits for a place.
type Places struct {
	limit int

	mu    sync.Mutex // guards everything below
	taken int
	by    map[*conn]int
}

// NewPlaces makes n places.
func NewPlaces(n int) *Places { return &Places{limit: n, by: make(map[*conn]int)} }

// Take takes a place for the call of ctx, until leave is called once, unless
// there is none.
func (p *Places) Take(ctx context.Context) (leave func(), ok bool) {
	c := connOf(ctx)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.taken >= p.limit || p.by[c] >= max(p.limit/placeShare, 1) {
		return nil, false
	}
	p.taken++
	p.by[c]++
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.taken--
		if p.by[c]--; p.by[c] == 0 {
			delete(p.by, c)
		}
	}, true
}
