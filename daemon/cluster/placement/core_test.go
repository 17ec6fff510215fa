package placement

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/remex-build/terraform-provider-remex/daemon/cluster"
)

func member(n int, boot int64, state cluster.State) cluster.Member {
	d := disk(n, 16, "z")
	return cluster.Member{ID: d.Node, Role: cluster.Worker, Addr: d.Addr, Zone: d.Zone, Disk: d.ID, Weight: d.Weight, Boot: boot, State: state}
}

func view(ms ...cluster.Member) *cluster.View { return &cluster.View{Members: ms} }

var t0 = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// watch lets the core see v every second for d.
func watch(c *Core, now *time.Time, d time.Duration, v *cluster.View) {
	for end := now.Add(d); now.Before(end); {
		*now = now.Add(time.Second)
		c.advance(*now, v)
	}
}

func TestCore(t *testing.T) {
	a, b := member(1, 1, cluster.Ready), member(2, 1, cluster.Starting)
	start := func() (*Core, *time.Time) {
		now := t0
		c := NewCore(2, time.Minute)
		c.Step(now, view(a, b, cluster.Member{ID: "s", Role: cluster.Scheduler}, cluster.Member{ID: "no disk", Role: cluster.Worker}))
		return c, &now
	}

	t.Run("workers' disks are placed, starting ones too", func(t *testing.T) {
		c, _ := start()
		if n := len(c.Table().Disks()); n != 2 {
			t.Fatalf("%d disks", n)
		}
	})
	t.Run("the same view changes nothing", func(t *testing.T) {
		c, now := start()
		if _, changed := c.Step(now.Add(time.Second), view(a, b)); changed {
			t.Fatal("changed")
		}
	})
	t.Run("an absence below a minute moves nothing", func(t *testing.T) {
		c, now := start()
		watch(c, now, 59*time.Second, view(a))
		if len(c.disks) != 2 {
			t.Fatal("the disk was dropped early")
		}
		watch(c, now, 10*time.Second, view(a, b))
		watch(c, now, 59*time.Second, view(a))
		if len(c.disks) != 2 {
			t.Fatal("two absences were added up")
		}
	})
	t.Run("a disk away for a minute is dropped", func(t *testing.T) {
		c, now := start()
		watch(c, now, 60*time.Second, view(a))
		if n := len(c.disks); n != 1 {
			t.Fatalf("%d disks", n)
		}
	})
	t.Run("a process that was stopped has not watched", func(t *testing.T) {
		c, now := start()
		watch(c, now, 2*time.Second, view(a))
		c.Step(now.Add(time.Hour), view(a))
		if n := len(c.Table().Disks()); n != 2 {
			t.Fatalf("%d disks", n)
		}
	})
	t.Run("a draining disk leaves at once, and stays away when its member does", func(t *testing.T) {
		c, now := start()
		draining := b
		draining.State = cluster.Draining
		if table, changed := c.Step(now.Add(time.Second), view(a, draining)); !changed || len(table.Disks()) != 1 {
			t.Fatalf("changed %v, %d disks", changed, len(table.Disks()))
		}
		if table, _ := c.Step(now.Add(2*time.Second), view(a)); len(table.Disks()) != 1 {
			t.Fatalf("%d disks", len(table.Disks()))
		}
	})
	t.Run("a restart updates the address and moves no data", func(t *testing.T) {
		c, now := start()
		id := c.Table().ID()
		watch(c, now, 5*time.Second, view(a))
		again := member(2, 2, cluster.Starting)
		again.ID, again.Addr = "w2 again", "127.0.0.9:1"
		table, changed := c.Step(now.Add(time.Second), view(a, again))
		d, _ := table.Disk(b.Disk)
		if !changed || table.ID() != id || d.Addr != again.Addr || d.Node != again.ID {
			t.Fatalf("changed %v, same id %v, disk %v", changed, table.ID() == id, d)
		}
	})
	t.Run("of two members with one disk the later boot wins", func(t *testing.T) {
		c, now := start()
		later := b
		later.ID, later.Boot, later.Addr = "w2 later", 7, "127.0.0.9:2"
		for _, ms := range [][]cluster.Member{{a, b, later}, {a, later, b}} {
			c.Step(now.Add(time.Second), view(ms...))
			if d, _ := c.Table().Disk(b.Disk); d.Addr != later.Addr {
				t.Fatalf("the disk is at %s", d.Addr)
			}
		}
		old := b
		old.State = cluster.Draining
		c.Step(now.Add(2*time.Second), view(a, old, later))
		if _, ok := c.Table().Disk(b.Disk); !ok {
			t.Fatal("the earlier boot's draining took the disk away")
		}
	})
}

func TestSettledIsWhoHasHeardOfNoNewDiskForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := member(1, 1, cluster.Ready), member(2, 1, cluster.Ready)
		f := &fakeMembers{view: view(a), changed: make(chan struct{})}
		p := New(f, 2, time.Minute, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- p.Run(ctx) }()
		after := func(d time.Duration, what string, want bool) {
			t.Helper()
			time.Sleep(d)
			synctest.Wait()
			if got := p.Settled(); got != want {
				t.Errorf("%s: settled is %v", what, got)
			}
		}
		after(time.Minute, "a worker alone", false)
		f.set(view(a, cluster.Member{ID: "s", Role: cluster.Scheduler}))
		after(time.Second, "a moment after a scheduler came", false)
		f.set(view(a, b, cluster.Member{ID: "s", Role: cluster.Scheduler}))
		after(1500*time.Millisecond, "a moment after another disk came", false)
		after(time.Second, "a while after that", true)
		f.set(view(a, b, member(3, 1, cluster.Ready)))
		after(0, "when one more joins", true)
		f.set(view(a))
		after(2*time.Minute, "when the others are gone", true)
		f.set(view())
		after(2*time.Minute, "without a disk", false)
		f.set(view(a, b))
		after(time.Second, "a moment after disks came back", false)
		after(2*time.Second, "a while after they did", true)
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
}

// TestCoreForgetsWhereItStarted holds that nodes which saw different pasts
// agree once they have seen the same view for long enough.
func TestCoreForgetsWhereItStarted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(label string) *cluster.View {
			v := new(cluster.View)
			for n := range 6 {
				s := rapid.SampledFrom([]cluster.State{0, cluster.Starting, cluster.Ready, cluster.Draining}).Draw(t, label)
				if s != 0 {
					v.Members = append(v.Members, member(n, int64(rapid.IntRange(1, 3).Draw(t, "boot")), s))
				}
			}
			return v
		}
		now, final := t0, draw("final")
		a, b := NewCore(2, 10*time.Second), NewCore(2, 10*time.Second)
		for range 3 {
			watch(a, &now, time.Second, draw("a"))
			watch(b, &now, 4*time.Second, draw("b"))
		}
		watch(a, &now, 11*time.Second, final)
		watch(b, &now, 11*time.Second, final)
		if diff := cmp.Diff(layout(a.placeable(), 2).Disks(), layout(b.placeable(), 2).Disks()); diff != "" {
			t.Fatalf("they differ:\n%s", diff)
		}
	})
}

// fakeMembers is a membership that a test changes.
type fakeMembers struct {
	mu      sync.Mutex
	view    *cluster.View
	changed chan struct{}
}

func (f *fakeMembers) View() *cluster.View {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.view
}

func (f *fakeMembers) Changed() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.changed
}

func (f *fakeMembers) set(v *cluster.View) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.view = v
	close(f.changed)
	f.changed = make(chan struct{})
}

func TestPlacementFollowsTheMembership(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := member(1, 1, cluster.Ready), member(2, 1, cluster.Ready)
		f := &fakeMembers{view: view(a), changed: make(chan struct{})}
		p := New(f, 2, time.Minute, slog.New(slog.DiscardHandler))
		if n := len(p.Table().Disks()); n != 1 {
			t.Fatalf("%d disks at the start", n)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- p.Run(ctx) }()
		synctest.Wait()

		changed := p.Changed()
		f.set(view(a, b))
		<-changed
		if n := len(p.Table().Disks()); n != 2 {
			t.Fatalf("%d disks after one joined", n)
		}

		gone, changed := time.Now(), p.Changed()
		f.set(view(a))
		<-changed
		if away := time.Since(gone); away < 59*time.Second || away > 62*time.Second {
			t.Fatalf("the lost disk was dropped after %s", away)
		}
		if n := len(p.Table().Disks()); n != 1 {
			t.Fatalf("%d disks after one was lost", n)
		}
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
}

// Who drains owns nothing, and is still asked for what it has until it has left.
func TestLeavingDisksAreKnownUntilTheyHaveLeft(t *testing.T) {
	now := time.Unix(0, 0)
	c := NewCore(1, time.Minute)
	view := func(state cluster.State) *cluster.View {
		return &cluster.View{Members: []cluster.Member{
			{ID: "a", Role: cluster.Worker, Disk: cluster.DiskID{1}, Addr: "a:1", State: cluster.Ready},
			{ID: "b", Role: cluster.Worker, Disk: cluster.DiskID{2}, Addr: "b:1", State: state},
		}}
	}
	c.Step(now, view(cluster.Ready))
	table, changed := c.Step(now, view(cluster.Draining))
	if !changed || len(table.Disks()) != 1 || len(table.Leaving()) != 1 || table.Leaving()[0].Addr != "b:1" {
		t.Errorf("changed %v: placeable %v, leaving %v", changed, table.Disks(), table.Leaving())
	}
	if _, changed = c.Step(now, view(cluster.Draining)); changed {
		t.Error("nothing has changed")
	}
	before := table.ID()
	only := view(cluster.Ready)
	only.Members = only.Members[:1]
	if table, changed = c.Step(now, only); !changed || len(table.Leaving()) != 0 || table.ID() != before {
		t.Errorf("changed %v, leaving %v", changed, table.Leaving())
	}
}
