package cluster

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// node is a member that a test can stop or crash.
type node struct {
	*Members
	cancel context.CancelFunc
	done   sync.WaitGroup
}

func member(name string, boot int64) Member {
	return Member{
		ID: fmt.Sprintf("%s#%d", name, boot), Name: name, Boot: boot, Role: Worker,
		Addr: "127.0.0.1:1", Weight: 1, State: Starting, Version: 1,
	}
}

// start starts a node; bind is IP:port.
func start(t *testing.T, self Member, bind string, seeds ...string) *node {
	t.Helper()
	return startLogging(t, slog.New(slog.DiscardHandler), self, bind, seeds...)
}

func startLogging(t *testing.T, log *slog.Logger, self Member, bind string, seeds ...string) *node {
	t.Helper()
	m, err := Start(Options{
		Self: self, BindAddr: bind, Seeds: seeds, Label: "test", Log: log,
		ProbeInterval: 100 * time.Millisecond, ProbeTimeout: 50 * time.Millisecond,
		GossipInterval: 20 * time.Millisecond, RejoinInterval: 300 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	n := &node{Members: m, cancel: cancel}
	n.done.Go(func() {
		if err := n.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(n.stop)
	return n
}

// startDoomed starts a node that can only crash: it never leaves.
func startDoomed(t *testing.T, self Member, bind string, seeds ...string) (crash func()) {
	t.Helper()
	m, err := Start(Options{Self: self, BindAddr: bind, Seeds: seeds, Label: "test", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var joining sync.WaitGroup
	joining.Go(func() { m.join(ctx) })
	crash = sync.OnceFunc(func() {
		cancel()
		joining.Wait()
		m.list.Shutdown()
	})
	t.Cleanup(crash)
	return crash
}

func (n *node) stop() {
	n.cancel()
	n.done.Wait()
}

// sees waits until the view is made of exactly these members.
func (n *node) sees(t *testing.T, ids ...string) {
	t.Helper()
	slices.Sort(ids)
	n.until(t, fmt.Sprintf("members are %v", ids), func(v *View) bool {
		var got []string
		for _, m := range v.Members {
			got = append(got, m.ID)
		}
		return slices.Equal(got, ids)
	})
}

func (n *node) until(t *testing.T, what string, ok func(*View) bool) {
	t.Helper()
	late := time.After(20 * time.Second)
	for {
		changed := n.Changed()
		v := n.View()
		if ok(v) {
			return
		}
		select {
		case <-changed:
		case <-late:
			t.Fatalf("%s never sees that %s; its view: %+v", n.Self().ID, what, v.Members)
		}
	}
}

func unusedAddr(t *testing.T, ip string) string {
	t.Helper()
	l, err := net.Listen("tcp", ip+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestNodesSeeEachOtherAndWhatTheyTell(t *testing.T) {
	a := start(t, member("a", 1), "127.1.0.1:0")
	b := start(t, member("b", 1), "127.1.0.2:0", a.GossipAddr())
	c := start(t, member("c", 1), "127.1.0.3:0", a.GossipAddr())
	for _, n := range []*node{a, b, c} {
		n.sees(t, "a#1", "b#1", "c#1")
	}
	if diff := cmp.Diff(c.Self(), a.View().Members[2]); diff != "" {
		t.Error(diff)
	}

	c.SetState(Draining)
	a.until(t, "c drains", func(v *View) bool { return v.Members[2].State == Draining })
	if c.Self().State != Draining {
		t.Error("c does not")
	}
	before := time.Now()
	c.stop()
	if took := time.Since(before); took > 3*time.Second {
		t.Errorf("leaving took %v", took)
	}
	a.sees(t, "a#1", "b#1")
	b.sees(t, "a#1", "b#1")
	c.SetState(Ready) // is without effect after the end
}

func TestCrashedNodeVanishes(t *testing.T) {
	a := start(t, member("a", 1), "127.1.1.1:0")
	b := start(t, member("b", 1), "127.1.1.2:0", a.GossipAddr())
	crash := startDoomed(t, member("c", 1), "127.1.1.3:0", a.GossipAddr())
	a.sees(t, "a#1", "b#1", "c#1")
	b.sees(t, "a#1", "b#1", "c#1")
	crash()
	a.sees(t, "a#1", "b#1")
	b.sees(t, "a#1", "b#1")
}

// Two nodes of one name: the later one counts, and the other can tell.
func TestTheOneOfTwoThatIsReplacedKnows(t *testing.T) {
	a := start(t, member("a", 1), "127.1.6.1:0")
	b1 := start(t, member("b", 1), "127.1.6.2:0", a.GossipAddr())
	a.sees(t, "a#1", "b#1")
	if by, yes := b1.View().Replaced(b1.Self()); yes {
		t.Errorf("replaced by %v", by)
	}
	b2 := start(t, member("b", 2), "127.1.6.3:0", a.GossipAddr())
	b1.sees(t, "a#1", "b#2")
	b2.sees(t, "a#1", "b#2")
	if by, yes := b1.View().Replaced(b1.Self()); !yes || by.ID != b2.Self().ID {
		t.Errorf("the older one: %v, %v", by, yes)
	}
	if _, yes := b2.View().Replaced(b2.Self()); yes {
		t.Error("the later one thinks that it is replaced")
	}
}

func TestRestartHidesTheBootBefore(t *testing.T) {
	a := start(t, member("a", 1), "127.1.2.1:0")
	addr := unusedAddr(t, "127.1.2.2")
	crash := startDoomed(t, member("b", 1), addr, a.GossipAddr())
	a.sees(t, "a#1", "b#1")
	crash()
	b := start(t, member("b", 2), addr, a.GossipAddr())
	a.sees(t, "a#1", "b#2")
	b.sees(t, "a#1", "b#2")
}

// failures is told of each attempt to join that failed.
type failures chan struct{}

func (f failures) Write(line []byte) (int, error) {
	if strings.Contains(string(line), "joining a seed") {
		select {
		case f <- struct{}{}:
		default:
		}
	}
	return len(line), nil
}

func TestSeedsThatComeUpLaterAreFound(t *testing.T) {
	seeds := []string{unusedAddr(t, "127.1.3.1"), unusedAddr(t, "127.1.3.2")}
	failed := make(failures, 1)
	log := slog.New(slog.NewTextHandler(failed, &slog.HandlerOptions{Level: slog.LevelDebug}))
	c := startLogging(t, log, member("c", 1), "127.1.3.3:0", seeds...)
	<-failed
	c.sees(t, "c#1")
	a := start(t, member("a", 1), seeds[0], seeds...) // both are their own seeds
	b := start(t, member("b", 1), seeds[1], seeds...)
	for _, n := range []*node{a, b, c} {
		n.sees(t, "a#1", "b#1", "c#1")
	}
}

func TestHalvesFindEachOther(t *testing.T) {
	seeds := []string{unusedAddr(t, "127.1.4.1"), unusedAddr(t, "127.1.4.3")}
	a := start(t, member("a", 1), seeds[0])
	b := start(t, member("b", 1), "127.1.4.2:0", seeds[0]) // knows one half only
	a.sees(t, "a#1", "b#1")
	c := start(t, member("c", 1), seeds[1])
	d := start(t, member("d", 1), "127.1.4.4:0", seeds...) // joins them
	for _, n := range []*node{a, b, c, d} {
		n.sees(t, "a#1", "b#1", "c#1", "d#1")
	}
}

func TestOtherClustersAreNotHeard(t *testing.T) {
	a := start(t, member("a", 1), "127.1.5.1:0")
	key := []byte("0123456789abcdef")
	for i, o := range []Options{{Label: "another"}, {Label: "test", SecretKey: key}, {Label: "test"}} {
		same := o.Label == "test" && o.SecretKey == nil
		o.Self, o.BindAddr, o.Log = member("b", 1), fmt.Sprintf("127.1.5.%d:0", i+2), slog.New(slog.DiscardHandler)
		o.ProbeInterval, o.ProbeTimeout = 100*time.Millisecond, 50*time.Millisecond // a probe under way outlives Shutdown
		m, err := Start(o)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.list.Join([]string{a.GossipAddr()}); (err == nil) != same {
			t.Errorf("%v with label %q and a key of %d bytes", err, o.Label, len(o.SecretKey))
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		m.Run(ctx)
	}
	a.sees(t, "a#1")
}

func TestStartRefusesWhatCannotWork(t *testing.T) {
	for name, o := range map[string]Options{
		"no key beyond loopback": {BindAddr: "0.0.0.0:0"},
		"a host name":            {BindAddr: "localhost:0"},
		"no port":                {BindAddr: "127.0.0.1"},
		"a port that is none":    {BindAddr: "127.0.0.1:70000"},
		"a bad key":              {BindAddr: "127.0.0.1:0", SecretKey: []byte("short")},
		"too long a name":        {BindAddr: "127.0.0.1:0", Self: Member{ID: "x", Name: strings.Repeat("x", 600)}},
		"no id":                  {BindAddr: "127.0.0.1:0", Self: Member{Name: "x"}},
	} {
		o.Log = slog.New(slog.DiscardHandler)
		if o.Self == (Member{}) {
			o.Self = member("a", 1)
		}
		if _, err := Start(o); err == nil {
			t.Errorf("started with %s", name)
		} else {
			t.Logf("%s: %v", name, err)
		}
	}
}

func TestViewHidesWhatIsReplaced(t *testing.T) {
	disk := DiskID{1}
	known := map[string]Member{}
	for _, m := range []Member{
		{ID: "a#1", Name: "a", Boot: 1},
		{ID: "a#2", Name: "a", Boot: 2},
		{ID: "b#1", Name: "b", Boot: 1, Disk: disk},
		{ID: "c#3", Name: "c", Boot: 3, Disk: disk},
		{ID: "d#1", Name: "d", Boot: 1},
		{ID: "e#1", Name: "e", Boot: 1}, // no disks
	} {
		known[m.ID] = m
	}
	var got []string
	for _, m := range newView(known).Members {
		got = append(got, m.ID)
	}
	if diff := cmp.Diff([]string{"a#2", "c#3", "d#1", "e#1"}, got); diff != "" {
		t.Error(diff)
	}
}
