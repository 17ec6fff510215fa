package replica

import (
	"context"
	"fmt"
	"sync"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/blob/disk"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

// maxGets is how many calls one batch keeps under way.
const maxGets = 8

// getting reads small blobs from wherever they are: this disk, then owner after
// owner, then who was found to hold them.
type getting struct {
	s    *Store
	ds   []digest.Digest
	here bool // this node's own disk may be read
	// sink gets each answer once, concurrently; ErrNotFound only where that is
	// certain.
	sink func(of []int32, rs []blob.Result)

	mu   sync.Mutex
	todo []int32 // guarded by mu: what has yet to be read
	last error   // guarded by mu: the last trouble
}

func (g *getting) run(ctx context.Context) {
	wait, cancel := patience(ctx)
	defer cancel()
	todo := make([]int32, len(g.ds))
	for i := range todo {
		todo[i] = int32(i)
	}
	if g.here && g.s.local != nil {
		todo = g.fromDisk(ctx, todo)
	}
	for attempt := 0; len(todo) > 0; attempt++ {
		changed := g.s.placement.Changed()
		v := g.s.view()
		if attempt == 0 {
			todo = g.fromOwners(wait, v, todo)
		} else if g.here && g.s.local != nil {
			todo = g.fromDisk(ctx, todo)
		}
		todo = g.fromHolders(wait, v, todo)
		if len(todo) == 0 {
			return
		}
		if ctx.Err() == nil && attempt > 0 {
			g.s.metrics.waits.Inc()
		}
		if pause(wait, attempt, changed) != nil {
			g.fail(todo, gaveUp(ctx))
			return
		}
	}
}

func (g *getting) fail(of []int32, err error) {
	if g.last != nil {
		err = fmt.Errorf("%w: %s", err, g.last.Error())
	}
	rs := make([]blob.Result, len(of))
	for j, i := range of {
		rs[j].Err = fmt.Errorf("read %s: %w", g.ds[i], err)
	}
	g.sink(of, rs)
}

// fromDisk reads what this node's own disk has.
func (g *getting) fromDisk(ctx context.Context, of []int32) (left []int32) {
	var have []int32
	for j, p := range g.s.local.Presence(pick(g.ds, of), false) {
		// The empty blob is there, whether or not the disk's index is.
		if p == disk.Present || g.ds[of[j]].IsEmpty() {
			have = append(have, of[j])
		} else {
			left = append(left, of[j])
		}
	}
	for _, part := range g.batches(have) {
		left = append(left, g.deliver(part, g.s.local.GetBatch(ctx, pick(g.ds, part)), g.s.selfAddr)...)
	}
	return left
}

// fromOwners asks the first owner of each, then the second of what is left.
func (g *getting) fromOwners(ctx context.Context, v *view, of []int32) []int32 {
	order := make(map[int32][]int32, len(of))
	for _, i := range of {
		if !g.ds[i].IsEmpty() {
			order[i] = g.s.readOrder(v, g.ds[i])
		}
	}
	return g.down(ctx, v, of, order)
}

// fromHolders finds out who has what is left. What nobody has is answered.
func (g *getting) fromHolders(ctx context.Context, v *view, of []int32) []int32 {
	if len(of) == 0 {
		return nil
	}
	a := g.s.find(ctx, v, pick(g.ds, of), question{held: true})
	order := make(map[int32][]int32, len(of))
	var rest, lost []int32
	for j, i := range of {
		switch a.verdict(j) {
		case missing:
			lost = append(lost, i)
			continue
		case present:
			h := a.holders[j]
			order[i] = append([]int32(nil), h.at[:h.n]...)
			g.s.notice(a, j, g.ds[i])
		}
		rest = append(rest, i)
	}
	if len(lost) > 0 {
		rs := make([]blob.Result, len(lost))
		for j, i := range lost {
			rs[j].Err = fmt.Errorf("read %s: %w", g.ds[i], blob.ErrNotFound)
		}
		g.sink(lost, rs)
	}
	return g.down(ctx, v, rest, order)
}

// down asks the disks in each blob's order, and returns what none of them gave.
func (g *getting) down(ctx context.Context, v *view, of []int32, order map[int32][]int32) []int32 {
	todo := of
	for k := 0; ; k++ {
		groups := make(map[int32][]int32)
		var done []int32 // tried everywhere
		for _, i := range todo {
			if k < len(order[i]) {
				on := order[i][k]
				groups[on] = append(groups[on], i)
			} else {
				done = append(done, i)
			}
		}
		if len(groups) == 0 || ctx.Err() != nil {
			return todo
		}
		g.todo = done
		g.round(ctx, v, groups)
		todo = g.todo
	}
}

// round asks all disks at once.
func (g *getting) round(ctx context.Context, v *view, groups map[int32][]int32) {
	var wg sync.WaitGroup
	limit := make(chan struct{}, maxGets)
	for on, of := range groups {
		if on == v.self {
			if g.here {
				g.leave(of) // it is asked first each time
			} else {
				g.alreadyHere(of)
			}
			continue
		}
		addr := v.disks[on].Addr
		for _, part := range g.batches(of) {
			limit <- struct{}{}
			wg.Go(func() {
				defer func() { <-limit }()
				g.call(ctx, addr, part)
			})
		}
	}
	wg.Wait()
}

// alreadyHere answers for what has come to this node's disk meanwhile.
func (g *getting) alreadyHere(of []int32) {
	ds := pick(g.ds, of)
	for j, p := range g.s.local.Presence(ds, true) {
		if p == disk.Present {
			g.sink(of[j:j+1], []blob.Result{{Err: errHere}})
		} else {
			g.leave(of[j : j+1])
		}
	}
}

func (g *getting) leave(of []int32) {
	g.mu.Lock()
	g.todo = append(g.todo, of...)
	g.mu.Unlock()
}

func (g *getting) call(ctx context.Context, addr string, of []int32) {
	ds := pick(g.ds, of)
	cost := batchCost(ds)
	if g.s.budget.Acquire(ctx, cost) != nil {
		g.leave(of)
		return
	}
	defer g.s.budget.Release(ctx, cost)
	rs, err := g.s.getFrom(ctx, addr, ds)
	if err != nil {
		g.mu.Lock()
		g.last = err
		g.mu.Unlock()
		g.leave(of)
		return
	}
	g.leave(g.deliver(of, rs, addr))
}

// deliver hands on what was read, and returns what was not.
func (g *getting) deliver(of []int32, rs []blob.Result, addr string) (left []int32) {
	good, data := make([]int32, 0, len(of)), make([]blob.Result, 0, len(of))
	for j, i := range of {
		if rs[j].Err != nil {
			g.s.trouble(g.ds[i], addr, rs[j].Err)
			left = append(left, i)
			continue
		}
		good, data = append(good, i), append(data, rs[j])
	}
	if len(good) > 0 {
		g.sink(good, data)
	}
	return left
}

// batches splits what is asked so that each answer fits a message.
func (g *getting) batches(of []int32) (parts [][]int32) {
	for len(of) > 0 {
		n, size := 0, int64(0)
		for n < len(of) && n < maxDigests {
			size += g.ds[of[n]].Size() + getOverhead
			if n > 0 && size > maxBatch {
				break
			}
			n++
		}
		parts, of = append(parts, of[:n]), of[n:]
	}
	return parts
}
