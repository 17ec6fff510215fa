package scheduler_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/remex-build/terraform-provider-remex/daemon/cluster"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	"github.com/remex-build/terraform-provider-remex/daemon/rpc"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler"
	"github.com/remex-build/terraform-provider-remex/daemon/worker"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// members is a view that tests change.
type members struct {
	mu      sync.Mutex
	view    *cluster.View
	changed chan struct{}
}

func (m *members) View() *cluster.View {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.view
}

func (m *members) Changed() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changed
}

func (m *members) set(f func([]cluster.Member) []cluster.Member) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.view = &cluster.View{Members: f(slices.Clone(m.view.Members))}
	close(m.changed)
	m.changed = make(chan struct{})
}

// conns is one node's connections.
type conns struct {
	mu sync.Mutex
	m  map[string]*grpc.ClientConn
}

func (c *conns) Conn(addr string) (*grpc.ClientConn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.m[addr] == nil {
		conn, err := grpc.NewClient("passthrough:///"+addr, rpc.DialOptions(nil)...)
		if err != nil {
			return nil, err
		}
		if c.m == nil {
			c.m = map[string]*grpc.ClientConn{}
		}
		c.m[addr] = conn
	}
	return c.m[addr], nil
}

func (c *conns) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.m {
		conn.Close()
	}
}

// actions runs tasks by what their ActionBlob says.
type actions struct {
	name string
	gate chan struct{} // "wait" ends when it is closed

	mu      sync.Mutex
	running []string // tasks
	total   int
}

func (a *actions) Prefetch(context.Context, *worker.Task) {}

func (a *actions) Run(ctx context.Context, _ int, t *worker.Task, started, free func()) ([]byte, error) {
	a.mu.Lock()
	a.running = append(a.running, t.ID)
	a.total++
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.running = slices.Delete(a.running, slices.Index(a.running, t.ID), slices.Index(a.running, t.ID)+1)
	}()
	started()
	switch what := string(t.ActionBlob); what {
	case "wait":
		select {
		case <-a.gate:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	case "trouble":
		return nil, errors.New("disk on fire")
	}
	free()
	return []byte("ran " + string(t.CommandBlob)), nil
}

func (a *actions) count() (running, total int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.running), a.total
}

// node is a scheduler or a worker with its port.
type node struct {
	m       cluster.Member
	service *scheduler.Service
	actions *actions
	stop    func() // begins an orderly end
	crash   func() // closes the port and all connections at once
	kill    func() // and waits for what goes on without them
}

type fixture struct {
	t       testing.TB
	members *members
	gate    chan struct{}
	nodes   []*node
}

func newFixture(t testing.TB) *fixture {
	t.Helper()
	f := &fixture{t: t, members: &members{view: &cluster.View{}, changed: make(chan struct{})}, gate: make(chan struct{})}
	t.Cleanup(func() {
		for _, n := range f.nodes {
			n.kill()
		}
	})
	return f
}

func (f *fixture) listen() net.Listener {
	f.t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.t.Fatal(err)
	}
	return lis
}

// join adds the node to the view, once it runs.
func (f *fixture) join(n *node, server *grpc.Server, lis net.Listener, c *conns, run func(context.Context) error) *node {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = server.Serve(lis) })
	running.Go(func() { _ = run(ctx) })
	n.stop = cancel
	n.crash = sync.OnceFunc(func() {
		server.Stop()
		c.close()
	})
	n.kill = sync.OnceFunc(func() {
		n.crash()
		cancel()
		running.Wait()
	})
	f.nodes = append(f.nodes, n)
	f.members.set(func(ms []cluster.Member) []cluster.Member { return append(ms, n.m) })
	return n
}

func (f *fixture) scheduler(name string) *node {
	f.t.Helper()
	lis, c, server := f.listen(), &conns{}, grpc.NewServer()
	n := &node{m: cluster.Member{ID: name + "-1", Name: name, Role: cluster.Scheduler, Addr: lis.Addr().String(), State: cluster.Ready}}
	n.service = scheduler.New(scheduler.Options{Self: n.m, Members: f.members, Peers: c, Log: slog.New(slog.DiscardHandler)})
	n.service.Register(server)
	return f.join(n, server, lis, c, n.service.Run)
}

func (f *fixture) worker(name string, executors int) *node {
	f.t.Helper()
	lis, c, server := f.listen(), &conns{}, grpc.NewServer()
	n := &node{m: cluster.Member{ID: name + "-1", Name: name, Role: cluster.Worker, Addr: lis.Addr().String(), State: cluster.Ready}}
	n.actions = &actions{name: name, gate: f.gate}
	l := worker.New(worker.Options{
		Self: n.m, Members: f.members, Peers: c, Executors: executors, Actions: n.actions, Log: slog.New(slog.DiscardHandler),
	})
	return f.join(n, server, lis, c, l.Run)
}

// crash ends a node without a farewell, and the membership notices.
func (f *fixture) crash(n *node) {
	n.crash()
	f.members.set(func(ms []cluster.Member) []cluster.Member {
		return slices.DeleteFunc(ms, func(m cluster.Member) bool { return m.ID == n.m.ID })
	})
}

func request(i int, what string) scheduler.Request {
	text := fmt.Sprint(what, i)
	return scheduler.Request{
		Action: digest.Of(digest.SHA256, []byte(text)), Principal: "p", Invocation: "i",
		ActionBlob: []byte(what), CommandBlob: []byte(text),
	}
}

// outcome is how a call ended.
type outcome struct {
	last scheduler.Update
	err  error
}

// execute makes the call, and tells of each update over the channel.
func execute(ctx context.Context, n *node, r scheduler.Request, updates chan<- scheduler.Update) outcome {
	var o outcome
	o.err = n.service.Execute(ctx, r, func(u scheduler.Update) error {
		o.last = u
		if updates != nil {
			updates <- u
		}
		return nil
	})
	return o
}

func (o outcome) check(t testing.TB, want string) {
	t.Helper()
	if o.err != nil || !o.last.Done || o.last.Err != nil || string(o.last.Response) != want {
		t.Errorf("got %+v, %v; want %q", o.last, o.err, want)
	}
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// eventually polls, as what happens on the way is nobody's to wait for.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for until := time.Now().Add(15 * time.Second); !ok(); {
		if time.Now().After(until) {
			t.Fatalf("never: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestService(t *testing.T) {
	t.Run("an action runs, and its response comes back", func(t *testing.T) {
		t.Parallel()
		f := newFixture(t)
		s := f.scheduler("s1")
		f.worker("w1", 1)
		execute(within(t), s, request(1, "x"), nil).check(t, "ran x1")
	})
	t.Run("either scheduler runs any action", func(t *testing.T) {
		t.Parallel()
		f := newFixture(t)
		s := []*node{f.scheduler("s1"), f.scheduler("s2")}
		f.worker("w1", 2)
		f.worker("w2", 1)
		ctx := within(t)
		var wg sync.WaitGroup
		for i := range 200 {
			wg.Go(func() {
				execute(ctx, s[i%2], request(i/2, "x"), nil).check(t, fmt.Sprint("ran x", i/2))
			})
		}
		wg.Wait()
	})
	t.Run("who looks for a dead scheduler at the address of a live one takes nobody's place", func(t *testing.T) {
		t.Parallel()
		f := newFixture(t)
		s := []*node{f.scheduler("s1"), f.scheduler("s2")}
		f.worker("w1", 2)
		ghost := s[1].m
		ghost.ID = "s2-dead"
		f.members.set(func(ms []cluster.Member) []cluster.Member { return append(ms, ghost) })
		ctx := within(t)
		for round := range 20 { // the ghost is looked for again and again
			execute(ctx, s[0], request(round, "x"), nil).check(t, fmt.Sprint("ran x", round))
		}
		f.members.set(func(ms []cluster.Member) []cluster.Member { return ms[:len(ms)-1] })
		for i := range 20 {
			execute(ctx, s[0], request(100+i, "x"), nil).check(t, fmt.Sprint("ran x", 100+i))
		}
	})
	t.Run("a cancelled operation is killed and says so", func(t *testing.T) {
		t.Parallel()
		f := newFixture(t)
		s, w := f.scheduler("s1"), f.worker("w1", 1)
		ctx := within(t)
		updates := make(chan scheduler.Update, 10)
		ended := make(chan outcome, 1)
		go func() { ended <- execute(ctx, s, request(1, "wait"), updates) }()
		var name string
		for u := range updates {
			if name = u.Name; u.Stage == scheduler.Executing {
				break
			}
		}
		if err := s.service.Cancel(ctx, name); err != nil {
			t.Fatal(err)
		}
		o := <-ended
		var c interface{ Code() codes.Code }
		if !o.last.Done || !errors.As(o.last.Err, &c) || c.Code() != codes.Canceled {
			t.Errorf("got %+v", o.last)
		}
		eventually(t, "the action is killed", func() bool { n, _ := w.actions.count(); return n == 0 })
	})
	t.Run("a killed worker's actions run elsewhere", func(t *testing.T) {
		t.Parallel()
		f := newFixture(t)
		s := []*node{f.scheduler("s1"), f.scheduler("s2")}
		w := []*node{f.worker("w1", 2), f.worker("w2", 2)}
		ctx := within(t)
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() { execute(ctx, s[i%2], request(i, "wait"), nil).check(t, fmt.Sprint("ran wait", i)) })
		}
		eventually(t, "all run", func() bool {
			a, _ := w[0].actions.count()
			b, _ := w[1].actions.count()
			return a+b == 4
		})
		f.crash(w[0])
		eventually(t, "all ran or run on the other", func() bool { n, _ := w[1].actions.count(); return n == 2 })
		close(f.gate)
		wg.Wait()
		if _, total := w[1].actions.count(); total != 4 {
			t.Errorf("the other ran %d", total)
		}
	})
	t.Run("a worker that stops in order hands its actions over", func(t *testing.T) {
		t.Parallel()
		f := newFixture(t)
		s, leaving := f.scheduler("s1"), f.worker("w1", 1)
		ctx := within(t)
		ended := make(chan outcome, 1)
		go func() { ended <- execute(ctx, s, request(1, "wait"), nil) }()
		eventually(t, "it runs", func() bool { n, _ := leaving.actions.count(); return n == 1 })
		other := f.worker("w2", 1)
		leaving.stop()
		eventually(t, "it runs on the other", func() bool { n, _ := other.actions.count(); return n == 1 })
		close(f.gate)
		(<-ended).check(t, "ran wait1")
	})
	t.Run("a killed scheduler's actions go on, and their callers find the results", func(t *testing.T) {
		t.Parallel()
		f := newFixture(t)
		s := []*node{f.scheduler("s1"), f.scheduler("s2")}
		w := f.worker("w1", 8)
		ctx := within(t)
		execute(ctx, s[0], request(99, "x"), nil).check(t, "ran x99")
		execute(ctx, s[1], request(98, "x"), nil).check(t, "ran x98")
		// Half of the callers are at the one that is killed: they come back to
		// the other with the name that they know. The others notice nothing.
		var wg sync.WaitGroup
		lost, lose := context.WithCancel(ctx)
		for i := range 8 {
			updates := make(chan scheduler.Update, 100)
			wg.Go(func() {
				stream := ctx
				if i%2 == 0 {
					stream = lost
				}
				o := execute(stream, s[i%2], request(i, "wait"), updates)
				close(updates)
				if i%2 == 0 {
					var name string
					for u := range updates {
						name = u.Name
					}
					o = outcome{}
					o.err = s[1].service.Wait(ctx, name, func(u scheduler.Update) error { o.last = u; return nil })
				}
				o.check(t, fmt.Sprint("ran wait", i))
			})
		}
		eventually(t, "all run", func() bool { n, _ := w.actions.count(); return n == 8 })
		f.crash(s[0])
		lose()
		eventually(t, "the heir owns them all", func() bool { return s[1].service.Status().Executing == 8 })
		close(f.gate)
		wg.Wait()
		if _, total := w.actions.count(); total != 10 {
			t.Errorf("%d attempts, want each action to run once", total)
		}
	})
	t.Run("a finished operation answers by name, for whoever asks", func(t *testing.T) {
		t.Parallel()
		f := newFixture(t)
		s := []*node{f.scheduler("s1"), f.scheduler("s2")}
		f.worker("w1", 1)
		ctx := within(t)
		o := execute(ctx, s[0], request(1, "x"), nil)
		for i, n := range s {
			u, err := n.service.Operation(ctx, o.last.Name)
			if err != nil || string(u.Response) != "ran x1" {
				t.Errorf("scheduler %d: got %+v, %v", i, u, err)
			}
		}
		unknown := o.last.Name[:len(o.last.Name)-20] + "ab" + o.last.Name[len(o.last.Name)-18:]
		if _, err := s[0].service.Operation(ctx, unknown); !errors.Is(err, scheduler.ErrNotFound) {
			t.Errorf("unknown name: got %v", err)
		}
	})
	t.Run("trouble of one worker is another's work", func(t *testing.T) {
		t.Parallel()
		f := newFixture(t)
		s := f.scheduler("s1")
		f.worker("w1", 1)
		o := execute(within(t), s, request(1, "trouble"), nil)
		if !o.last.Done || o.last.Err == nil || o.last.Err.Error() != "disk on fire" {
			t.Errorf("got %+v, %v", o.last, o.err)
		}
	})
}

// BenchmarkExecute is an action that does nothing, from its Execute call to its
// response, over real streams: alone, and many at once.
func BenchmarkExecute(b *testing.B) {
	for _, schedulers := range []int{1, 2} {
		for _, at := range []int{1, 64} {
			b.Run(fmt.Sprintf("schedulers=%d/inflight=%d", schedulers, at), func(b *testing.B) {
				f := newFixture(b)
				var s []*node
				for i := range schedulers {
					s = append(s, f.scheduler(fmt.Sprint("s", i)))
				}
				f.worker("w1", 2)
				f.worker("w2", 2)
				ctx := b.Context()
				execute(ctx, s[0], request(0, "warm"), nil).check(b, "ran warm0")
				var n atomic.Int64
				var wg sync.WaitGroup
				b.ResetTimer()
				for range at {
					wg.Go(func() {
						for i := n.Add(1); i <= int64(b.N); i = n.Add(1) {
							if o := execute(ctx, s[int(i)%schedulers], request(int(i), "x"), nil); !o.last.Done {
								b.Errorf("got %+v", o)
							}
						}
					})
				}
				wg.Wait()
			})
		}
	}
}
