package rpc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var quiet = slog.New(slog.DiscardHandler)

// node is a server of calls on a loopback port.
type node struct {
	addr   string
	mux    *Mux
	server *grpc.Server
	served chan struct{}
}

// serve starts a node; addr may be "127.0.0.1:0".
func serve(t testing.TB, addr string, register func(*Mux)) *node {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{addr: l.Addr().String(), mux: NewMux(quiet), server: grpc.NewServer(ClusterServerOptions()...), served: make(chan struct{})}
	if register != nil {
		register(n.mux)
	}
	n.mux.Register(n.server)
	go func() {
		defer close(n.served)
		n.server.Serve(l)
	}()
	t.Cleanup(n.stop)
	return n
}

func (n *node) stop() {
	n.server.Stop()
	<-n.served
}

func dialPeers(t testing.TB) *Peers {
	t.Helper()
	p := NewPeers(PeersOptions{Self: "caller#1", Log: quiet})
	t.Cleanup(func() { p.Close() })
	return p
}

// echo answers with the request's packed digests as presence bytes.
func echo(m *Mux) {
	Handle(m, pb.Method_METHOD_BLOB_EXISTS, func(_ context.Context, from string, req *pb.ExistsRequest) (*pb.ExistsResponse, error) {
		if from != "caller#1" {
			return nil, fmt.Errorf("from is %q", from)
		}
		return &pb.ExistsResponse{Presence: req.Digests}, nil
	})
}

func ask(ctx context.Context, p *Peers, addr, text string) (string, error) {
	var resp pb.ExistsResponse
	err := p.Call(ctx, addr, pb.Method_METHOD_BLOB_EXISTS, &pb.ExistsRequest{Digests: []byte(text)}, &resp)
	return string(resp.Presence), err
}

func within(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func unusedAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestEveryCallGetsItsOwnAnswer(t *testing.T) {
	n, p := serve(t, "127.0.0.1:0", echo), dialPeers(t)
	ctx := within(t, 20*time.Second)
	var wg sync.WaitGroup
	for g := range 50 {
		wg.Go(func() {
			for i := range 40 {
				want := fmt.Sprintf("%d/%d/%s", g, i, strings.Repeat("x", i*100))
				got, err := ask(ctx, p, n.addr, want)
				if err != nil || got != want {
					t.Errorf("call %d/%d: got %.20q, %v", g, i, got, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestCallsBeyondTheQueueWaitTheirTurn(t *testing.T) {
	n, p := serve(t, "127.0.0.1:0", echo), dialPeers(t)
	ctx := within(t, 20*time.Second)
	want := strings.Repeat("x", 3<<20) // the queue holds two, a frame one
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			if got, err := ask(ctx, p, n.addr, want); err != nil || got != want {
				t.Errorf("got %d bytes, %v", len(got), err)
			}
		})
	}
	wg.Wait()
}

func TestErrorsKeepTheirCode(t *testing.T) {
	n, p := serve(t, "127.0.0.1:0", func(m *Mux) {
		Handle(m, pb.Method_METHOD_BLOB_EXISTS, func(context.Context, string, *pb.ExistsRequest) (*pb.ExistsResponse, error) {
			return nil, fmt.Errorf("look into\xff it: %w", blob.ErrNotFound)
		})
		Handle(m, pb.Method_METHOD_BLOB_GET, func(context.Context, string, *pb.GetRequest) (*pb.GetResponse, error) {
			panic("oh")
		})
		Handle(m, pb.Method_METHOD_BLOB_PULL, func(context.Context, string, *pb.PullRequest) (*pb.PullResponse, error) {
			return &pb.PullResponse{Blobs: []*pb.PutResponse_Blob{{Status: &pb.BlobStatus{Message: strings.Repeat("x", maxBody)}}}}, nil
		})
	}), dialPeers(t)
	ctx := within(t, 20*time.Second)

	_, err := ask(ctx, p, n.addr, "")
	if CodeOf(err) != codes.NotFound || err.Error() != "look into\uFFFD it: blob not found" {
		t.Errorf("a handler's error arrives as %v, %v", CodeOf(err), err)
	}
	for method, want := range map[pb.Method]codes.Code{
		pb.Method_METHOD_BLOB_GET:  codes.Internal,          // panics
		pb.Method_METHOD_BLOB_PULL: codes.ResourceExhausted, // answers too much
		pb.Method_METHOD_AC_GET:    codes.Unimplemented,
		pb.Method_METHOD_PING:      codes.OK,
	} {
		if err := p.Call(ctx, n.addr, method, &pb.Ping{}, &pb.Ping{}); CodeOf(err) != want {
			t.Errorf("%v: %v", method, err)
		}
	}
	if _, err := ask(ctx, p, n.addr, strings.Repeat("x", MaxMessage)); CodeOf(err) != codes.ResourceExhausted {
		t.Errorf("a request that is too large: %v", err)
	}
	if err := p.Call(ctx, n.addr, pb.Method_METHOD_PING, &pb.Ping{}, &pb.Ping{}); err != nil {
		t.Errorf("the stream does not outlive a bad call: %v", err)
	}
}

// blocking answers no call before its context ends.
func blocking(started chan<- context.Context) func(*Mux) {
	return func(m *Mux) {
		Handle(m, pb.Method_METHOD_BLOB_EXISTS, func(ctx context.Context, _ string, _ *pb.ExistsRequest) (*pb.ExistsResponse, error) {
			started <- ctx
			<-ctx.Done()
			return nil, ctx.Err()
		})
	}
}

func TestDeadlineTravels(t *testing.T) {
	started := make(chan context.Context, 1)
	n, p := serve(t, "127.0.0.1:0", blocking(started)), dialPeers(t)
	want := time.Now().Add(time.Hour)
	ctx, cancel := context.WithDeadline(t.Context(), want)
	defer cancel()
	done := make(chan error)
	go func() {
		_, err := ask(ctx, p, n.addr, "")
		done <- err
	}()
	got, ok := (<-started).Deadline()
	if d := got.Sub(want).Abs(); !ok || d > time.Minute {
		t.Errorf("the handler's deadline is %v off", d)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}

	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := ask(short, p, n.addr, ""); CodeOf(err) != codes.DeadlineExceeded {
		t.Errorf("past its deadline a call ends with %v", err)
	}
}

func TestCancellationReachesTheHandler(t *testing.T) {
	started := make(chan context.Context, 1)
	n, p := serve(t, "127.0.0.1:0", blocking(started)), dialPeers(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := ask(ctx, p, n.addr, "")
		done <- err
	}()
	handler := <-started
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	select {
	case <-handler.Done():
	case <-time.After(10 * time.Second):
		t.Error("the handler runs on")
	}
}

func TestRefusedPortFailsAtOnce(t *testing.T) {
	p := dialPeers(t)
	addr := unusedAddr(t)
	if !p.Reachable(addr) {
		t.Error("a node that nobody called counts as unreachable")
	}
	for range 3 {
		start := time.Now()
		_, err := ask(t.Context(), p, addr, "")
		if CodeOf(err) != codes.Unavailable || !strings.Contains(err.Error(), "refused") {
			t.Errorf("got %v", err)
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("it took %v", took)
		}
	}
	if p.Reachable(addr) {
		t.Error("a node that refuses counts as reachable")
	}
	serve(t, addr, echo)
	eventually(t, "a node that came up is reachable", func() bool { return p.Reachable(addr) })
	if got, err := ask(t.Context(), p, addr, "x"); got != "x" {
		t.Error(err)
	}
}

func TestBrokenStreamFailsAllCallsInFlight(t *testing.T) {
	started := make(chan context.Context, 100)
	n, p := serve(t, "127.0.0.1:0", blocking(started)), dialPeers(t)
	errs := make(chan error)
	const calls = 50
	for range calls {
		go func() {
			_, err := ask(t.Context(), p, n.addr, "")
			errs <- err
		}()
	}
	for range calls {
		<-started
	}
	n.stop()
	for range calls {
		if err := <-errs; CodeOf(err) != codes.Unavailable {
			t.Errorf("got %v", err)
		}
	}
	eventually(t, "it is unreachable", func() bool { return !p.Reachable(n.addr) })

	serve(t, n.addr, echo)
	eventually(t, "the node that restarted answers", func() bool {
		got, err := ask(t.Context(), p, n.addr, "x")
		return err == nil && got == "x"
	})
	if !p.Reachable(n.addr) {
		t.Error("it is unreachable")
	}
}

// gate forwards connections until it is shut, from when on nothing passes.
type gate struct {
	addr string
	shut atomic.Bool
}

func openGate(t *testing.T, to string) *gate {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{addr: l.Addr().String()}
	var wg sync.WaitGroup
	pass := func(to, from net.Conn) {
		defer to.Close()
		buf := make([]byte, 64<<10)
		for {
			n, err := from.Read(buf)
			if err != nil {
				return
			}
			if g.shut.Load() {
				continue
			}
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
	}
	wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				in.Close()
				continue
			}
			wg.Go(func() { pass(in, out) })
			wg.Go(func() { pass(out, in) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	return g
}

func TestSilentNodeIsGivenUp(t *testing.T) {
	started := make(chan context.Context, 10)
	n := serve(t, "127.0.0.1:0", blocking(started))
	g := openGate(t, n.addr)
	p := dialPeers(t)
	p.patience = patience{ask: 20 * time.Millisecond, doubt: 200 * time.Millisecond, end: time.Second}
	done := make(chan error)
	go func() {
		_, err := ask(t.Context(), p, g.addr, "")
		done <- err
	}()
	<-started
	g.shut.Store(true)
	eventually(t, "it is in doubt", func() bool { return !p.Reachable(g.addr) })
	if err := <-done; CodeOf(err) != codes.Unavailable {
		t.Errorf("the call ended with %v", err)
	}
	if p.Reachable(g.addr) {
		t.Error("it is reachable")
	}
}

func TestSlowHandlerIsNoSilentNode(t *testing.T) {
	started := make(chan context.Context, 10)
	n, p := serve(t, "127.0.0.1:0", blocking(started)), dialPeers(t)
	p.patience = patience{ask: 5 * time.Millisecond, doubt: 10 * time.Second, end: 11 * time.Second}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := ask(ctx, p, n.addr, "")
		done <- err
	}()
	<-started
	q := p.peers[n.addr]
	q.mu.Lock()
	s := q.stream
	q.mu.Unlock()
	for range 3 { // pings are answered again and again
		before := s.heard.Load()
		eventually(t, "it is heard of", func() bool { return s.heard.Load() > before })
	}
	if !p.Reachable(n.addr) {
		t.Error("it is unreachable")
	}
	cancel()
	<-done
}

func TestHandlersAreBoundedAndCancellationsStillRead(t *testing.T) {
	var running, most atomic.Int64
	release := make(chan struct{})
	n, p := serve(t, "127.0.0.1:0", func(m *Mux) {
		Handle(m, pb.Method_METHOD_BLOB_EXISTS, func(ctx context.Context, _ string, _ *pb.ExistsRequest) (*pb.ExistsResponse, error) {
			if r := running.Add(1); r > most.Load() {
				most.Store(r)
			}
			defer running.Add(-1)
			select {
			case <-ctx.Done():
			case <-release:
			}
			return &pb.ExistsResponse{}, nil
		})
	}), dialPeers(t)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range maxRunning + 200 {
		wg.Go(func() { ask(ctx, p, n.addr, "") })
	}
	eventually(t, "all slots are taken", func() bool { return running.Load() == maxRunning })
	cancel()
	wg.Wait()
	eventually(t, "every handler was cancelled", func() bool { return running.Load() == 0 })
	close(release)
	if _, err := ask(t.Context(), p, n.addr, ""); err != nil {
		t.Error(err)
	}
	if most.Load() > maxRunning {
		t.Errorf("%d handlers ran at once", most.Load())
	}
}

func TestMuxCloseLetsHandlersFinish(t *testing.T) {
	started, release := make(chan struct{}), make(chan struct{})
	n, p := serve(t, "127.0.0.1:0", func(m *Mux) {
		Handle(m, pb.Method_METHOD_BLOB_EXISTS, func(context.Context, string, *pb.ExistsRequest) (*pb.ExistsResponse, error) {
			close(started)
			<-release
			return &pb.ExistsResponse{}, nil
		})
	}), dialPeers(t)
	done := make(chan error)
	go func() {
		_, err := ask(t.Context(), p, n.addr, "")
		done <- err
	}()
	<-started
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		n.mux.Close()
		n.server.GracefulStop()
	}()
	eventually(t, "new calls are refused", func() bool {
		return CodeOf(p.Call(t.Context(), n.addr, pb.Method_METHOD_PING, &pb.Ping{}, &pb.Ping{})) == codes.Unavailable
	})
	close(release)
	if err := <-done; err != nil {
		t.Errorf("the call under way ended with %v", err)
	}
	<-closed
}

func TestPlaintextIsForLoopback(t *testing.T) {
	p := dialPeers(t)
	for addr, want := range map[string]codes.Code{
		"10.0.0.1:8981":       codes.FailedPrecondition,
		"example.com:8981":    codes.FailedPrecondition,
		":8981":               codes.FailedPrecondition,
		"0.0.0.0:8981":        codes.FailedPrecondition,
		"[::]:8981":           codes.FailedPrecondition,
		"127.0.0.1":           codes.InvalidArgument,
		"127.8.0.1:1":         codes.OK,
		"[::1]:8981":          codes.OK,
		"localhost:8981":      codes.OK,
		"localhost.evil.com:": codes.FailedPrecondition,
	} {
		if got := CodeOf(LoopbackOnly(addr)); got != want {
			t.Errorf("LoopbackOnly(%q): %v", addr, got)
		}
		if want == codes.OK {
			continue
		}
		if _, err := p.Conn(addr); CodeOf(err) != want {
			t.Errorf("Conn(%q): %v", addr, err)
		}
	}
}

func TestUnusedConnectionsAreForgotten(t *testing.T) {
	started := make(chan context.Context, 1)
	busy, unused := serve(t, "127.0.0.1:0", blocking(started)), serve(t, "127.0.0.1:0", echo)
	p := dialPeers(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := ask(ctx, p, busy.addr, "")
		done <- err
	}()
	<-started
	if _, err := ask(ctx, p, unused.addr, ""); err != nil {
		t.Fatal(err)
	}
	if gone := p.unused(time.Now().Add(-time.Hour)); len(gone) != 0 {
		t.Error("what was just used is forgotten")
	}
	gone := p.unused(time.Now().Add(time.Hour))
	if len(gone) != 1 || gone[0].addr != unused.addr {
		t.Errorf("%d connections are forgotten", len(gone))
	}
	for _, q := range gone {
		q.close()
	}
	if _, err := ask(ctx, p, unused.addr, ""); err != nil {
		t.Errorf("it is not dialled again: %v", err)
	}
	cancel()
	<-done
}

func TestBulkConnection(t *testing.T) {
	n, p := serve(t, "127.0.0.1:0", echo), dialPeers(t)
	addr := unusedAddr(t)
	for addr, want := range map[string]codes.Code{n.addr: codes.Unimplemented, addr: codes.Unavailable} {
		cc, err := p.Conn(addr)
		if err != nil {
			t.Fatal(err)
		}
		s, err := pb.NewBlobsClient(cc).Read(within(t, 5*time.Second), &pb.ReadRequest{})
		if err == nil {
			_, err = s.Recv()
		}
		if CodeOf(FromStatus(err)) != want {
			t.Errorf("got %v", err)
		}
	}
	eventually(t, "reachability follows without calls", func() bool { return !p.Reachable(addr) && p.Reachable(n.addr) })
}

func TestMetricsCountCalls(t *testing.T) {
	n := serve(t, "127.0.0.1:0", echo)
	reg := prometheus.NewRegistry()
	p := NewPeers(PeersOptions{Self: "caller#1", Log: quiet, Registerer: reg})
	defer p.Close()
	if _, err := ask(t.Context(), p, n.addr, ""); err != nil {
		t.Fatal(err)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "remex_rpc_calls_total" && f.Metric[0].Counter.GetValue() == 1 {
			return
		}
	}
	t.Errorf("got %v", families)
}

func TestClosedPeersFail(t *testing.T) {
	n, p := serve(t, "127.0.0.1:0", echo), dialPeers(t)
	if _, err := ask(t.Context(), p, n.addr, ""); err != nil {
		t.Fatal(err)
	}
	p.Close()
	if _, err := ask(t.Context(), p, n.addr, ""); CodeOf(err) != codes.Unavailable {
		t.Error(err)
	}
	p.Close()
}
