package placement

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/remex-build/terraform-provider-remex/daemon/cluster"
)

// DeadAfter is how long a disk may be out of the view before its data moves,
// unless configured otherwise.
const DeadAfter = 60 * time.Second

// Members is what placement follows; cluster.Members is one.
type Members interface {
	View() *cluster.View
	// Changed is closed at the next change of the view.
	Changed() <-chan struct{}
}

// Placement keeps the table that follows the membership. Its methods are safe
// for concurrent use.
type Placement struct {
	members Members
	tick    time.Duration
	log     *slog.Logger
	core    *Core // Run's, after New
	table   atomic.Pointer[Table]
	quiet   atomic.Pointer[time.Time] // since when no disk was new

	mu      sync.Mutex // guards changed
	changed chan struct{}
}

// New starts with the table of the present view; Run keeps it up to date.
func New(members Members, r int, deadAfter time.Duration, log *slog.Logger) *Placement {
	if deadAfter <= 0 {
		deadAfter = DeadAfter
	}
	p := &Placement{
		members: members,
		// Twice as often as the core needs, so that a tick may come late.
		tick:    max(min(deadAfter/(2*watched), time.Second), time.Millisecond),
		log:     log.With("part", "placement"),
		core:    NewCore(r, deadAfter),
		changed: make(chan struct{}),
	}
	t, _ := p.advance()
	p.table.Store(t)
	return p
}

// Table is the present table, never nil.
func (p *Placement) Table() *Table { return p.table.Load() }

// Settled reports whether this node has had time to hear of all disks. One
// that has just started hears of some before others. Until then nothing that
// takes all disks to know can be said.
func (p *Placement) Settled() bool {
	q := *p.quiet.Load()
	return !q.IsZero() && time.Since(q) >= settle
}

// Changed is closed when the table changes next. Ask for it before Table, and
// again after each change.
func (p *Placement) Changed() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.changed
}

// Run follows the membership until ctx ends.
func (p *Placement) Run(ctx context.Context) error {
	tick := time.NewTicker(p.tick)
	defer tick.Stop()
	for {
		changed := p.members.Changed()
		p.step()
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-tick.C:
		}
	}
}

// advance has the core look at the view of now. Whether that is new to this
// node is told before the table is.
func (p *Placement) advance() (t *Table, changed bool) {
	t, changed = p.core.Step(time.Now(), p.members.View())
	quiet := p.core.Quiet()
	p.quiet.Store(&quiet)
	return t, changed
}

func (p *Placement) step() {
	before := p.table.Load()
	t, changed := p.advance()
	if !changed {
		return
	}
	p.table.Store(t)
	if t.ID() != before.ID() {
		p.log.Info("placement changed", "disks", len(t.Disks()), "before", len(before.Disks()), "view", t.ID())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.changed)
	p.changed = make(chan struct{})
}
