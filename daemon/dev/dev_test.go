package dev

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/remex-build/terraform-provider-remex/daemon/config"
)

// TestMain is also the node that the tests' clusters are made of: started as a
// node is, it answers for its health, and says its name to whoever connects.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && (os.Args[1] == roleScheduler || os.Args[1] == roleWorker) {
		os.Exit(fakeNode(os.Args[2:]))
	}
	if len(os.Args) == 3 && os.Args[1] == "supervise" {
		err := Run(context.Background(), Options{
			Exe: os.Args[0], Dir: os.Args[2], Listen: "127.0.0.1:0", Schedulers: 1, Workers: 1, Replicas: 1,
			DiskSize: config.GiB, Out: io.Discard, Log: slog.New(slog.DiscardHandler),
		})
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	// Nodes that are built with the race detector would take 1 s to end.
	_ = os.Setenv("GORACE", "atexit_sleep_ms=0")
	goleak.VerifyTestMain(m)
}

func fakeNode(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	flags := map[string]string{}
	for _, a := range args {
		k, v, _ := strings.Cut(a, "=")
		flags[k] = v
	}
	fmt.Println("node", flags["--name"], "starts")
	if _, ok := flags["--broken"]; ok {
		fmt.Println("this node is broken")
		return 3
	}
	if dir := flags["--orphan"]; dir != "" {
		// A process that leaves its parent and its process group.
		cmd := exec.Command("setsid", "sleep", "1000")
		if err := cmd.Start(); err != nil {
			return 4
		}
		_ = os.WriteFile(filepath.Join(dir, fmt.Sprint(cmd.Process.Pid)), nil, 0o600)
	}
	if _, ok := flags["--stubborn"]; ok {
		signal.Ignore(unix.SIGTERM)
	}
	ops, err := net.Listen("tcp", flags["--listen-ops"])
	if err != nil {
		return 5
	}
	go func() {
		_ = http.Serve(ops, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }))
	}()
	if addr := flags["--listen-public"]; addr != "" {
		lis, err := net.Listen("tcp", addr)
		if err != nil {
			return 6
		}
		go hello(lis, flags["--name"])
	}
	<-ctx.Done()
	return 0
}

// hello says name to each connection, and then everything it is told.
func hello(lis net.Listener, name string) {
	for {
		c, err := lis.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			_, _ = io.WriteString(c, name+"\n")
			_, _ = io.Copy(c, c)
		}()
	}
}

// running is a cluster under test.
type running struct {
	t      *testing.T
	dir    string
	cancel context.CancelFunc
	done   chan error
	out    chan string // what was said when it was ready
	logs   *syncBuffer
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

type said chan string

func (s said) Write(p []byte) (int, error) { s <- string(p); return len(p), nil }

func start(t *testing.T, change func(*Options)) *running {
	t.Helper()
	r := &running{t: t, dir: t.TempDir(), done: make(chan error, 1), out: make(chan string, 1), logs: &syncBuffer{}}
	o := Options{
		Exe: os.Args[0], Dir: r.dir, Listen: "127.0.0.1:0", Schedulers: 2, Workers: 2, Executors: 1, Replicas: 2,
		DiskSize: config.GiB, Restart: true, Out: said(r.out), Log: slog.New(slog.NewTextHandler(r.logs, nil)),
	}
	if change != nil {
		change(&o)
	}
	r.dir = o.Dir
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	go func() { r.done <- Run(ctx, o) }()
	t.Cleanup(func() {
		cancel()
		if err := <-r.done; err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(r.logs.String())
		}
	})
	return r
}

func (r *running) ready() string {
	r.t.Helper()
	select {
	case s := <-r.out:
		return s
	case err := <-r.done:
		r.done <- nil
		r.t.Fatalf("it ended: %v\n%s", err, r.logs)
	case <-time.After(20 * time.Second):
		r.t.Fatalf("not ready\n%s", r.logs)
	}
	return ""
}

// stop stops the cluster and returns Run's error.
func (r *running) stop() error {
	r.cancel()
	err := <-r.done
	r.done <- nil
	return err
}

func (r *running) describe() description {
	r.t.Helper()
	d, err := readDescription(r.dir)
	if err != nil {
		r.t.Fatal(err)
	}
	return d
}

func readDescription(dir string) (d description, err error) {
	b, err := os.ReadFile(filepath.Join(dir, "cluster.json"))
	if err == nil {
		err = json.Unmarshal(b, &d)
	}
	return d, err
}

func (d description) node(name string) node {
	i := slices.IndexFunc(d.Nodes, func(n node) bool { return n.Name == name })
	return d.Nodes[i]
}

// alive reports whether a process runs: one that has ended and waits to be
// reaped does not.
func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !bytes.Contains(b, []byte(") Z "))
}

// eventually polls for what another process does.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

// connect opens a connection through the balancer and returns who answers.
func connect(t *testing.T, endpoint string) (*net.TCPConn, string) {
	t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(endpoint, "grpc://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(15 * time.Second))
	b := make([]byte, len("scheduler-1\n"))
	if _, err := io.ReadFull(c, b); err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn), strings.TrimSpace(string(b))
}

func TestClusterComesUpAndLeavesNothingBehind(t *testing.T) {
	orphans := t.TempDir()
	r := start(t, func(o *Options) { o.WorkerFlags = []string{"--orphan=" + orphans} })
	welcome := r.ready()
	d := r.describe()
	for _, want := range []string{"--remote_executor=" + d.Endpoint, "scheduler-2", "worker-2", fmt.Sprint(d.node("worker-1").PID), r.dir} {
		if !strings.Contains(welcome, want) {
			t.Errorf("%q is not in:\n%s", want, welcome)
		}
	}
	if !d.Ready || len(d.Nodes) != 4 || d.PID != os.Getpid() {
		t.Errorf("description: %+v", d)
	}
	hosts := map[string]bool{}
	for _, n := range d.Nodes {
		host, port, _ := net.SplitHostPort(n.Cluster)
		hosts[host] = true
		if !alive(n.PID) || port != "8981" {
			t.Errorf("node: %+v", n)
		}
	}
	if len(hosts) != 4 {
		t.Errorf("nodes share addresses: %v", hosts)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	for _, n := range d.Nodes {
		if alive(n.PID) {
			t.Errorf("%s is left", n.Name)
		}
		if b, _ := os.ReadFile(n.Log); !strings.Contains(string(b), "node "+n.Name+" starts") {
			t.Errorf("log of %s: %q", n.Name, b)
		}
	}
	left, _ := os.ReadDir(orphans)
	if len(left) != 2 {
		t.Fatalf("%d orphans were made", len(left))
	}
	for _, e := range left {
		var pid int
		_, _ = fmt.Sscan(e.Name(), &pid)
		if alive(pid) {
			t.Errorf("orphan %d is left", pid)
		}
	}
	if _, err := os.Stat(filepath.Join(r.dir, "cluster.json")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("cluster.json: %v", err)
	}
}

func TestNodesDieWithTheirSupervisor(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0], "supervise", dir)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var d description
	eventually(t, "a cluster that is ready", func() (ok bool) {
		var err error
		d, err = readDescription(dir)
		return err == nil && d.Ready
	})
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	for _, n := range d.Nodes {
		eventually(t, "end of "+n.Name, func() bool { return !alive(n.PID) })
	}

	// What the killed one left behind is no obstacle to the next.
	r := start(t, func(o *Options) { o.Dir = dir })
	r.ready()
	if d := r.describe(); d.PID != os.Getpid() {
		t.Errorf("description of process %d", d.PID)
	}
}

func TestKilledNodeComesBack(t *testing.T) {
	r := start(t, nil)
	r.ready()
	before := r.describe().node("worker-1")
	if err := unix.Kill(before.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a new process for worker-1", func() bool {
		pid := r.describe().node("worker-1").PID
		return pid != before.PID && pid != 0 && alive(pid)
	})
	if after := r.describe().node("worker-1"); after.Cluster != before.Cluster {
		t.Errorf("it moved from %s to %s", before.Cluster, after.Cluster)
	}
}

func TestKilledNodeStaysAwayWhenToldSo(t *testing.T) {
	r := start(t, func(o *Options) { o.Restart = false })
	r.ready()
	pid := r.describe().node("worker-1").PID
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "word that it is not started again", func() bool { return strings.Contains(r.logs.String(), "not started again") })
	if alive(pid) {
		t.Error("it is alive")
	}
}

func TestBalancerSendsClientsWhereSchedulersAre(t *testing.T) {
	r := start(t, func(o *Options) { o.Restart = false })
	r.ready()
	d := r.describe()
	one, first := connect(t, d.Endpoint)
	two, second := connect(t, d.Endpoint)
	if first == second {
		t.Errorf("both connections went to %s", first)
	}

	// An end travels through, and what was under way still arrives.
	if _, err := io.WriteString(two, "last words"); err != nil {
		t.Fatal(err)
	}
	if err := two.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(two); string(b) != "last words" || err != nil {
		t.Errorf("after half a close: %q, %v", b, err)
	}

	if err := unix.Kill(d.node(first).PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(one); err == nil {
		// The kernel's own end of the dead process's connection came first;
		// the next write must fail.
		eventually(t, "the broken connection", func() bool { _, err := one.Write([]byte("x")); return err != nil })
	}
	for range 4 {
		if _, name := connect(t, d.Endpoint); name != second {
			t.Errorf("connected to %s, which is dead", name)
		}
	}
}

func TestFrozenSchedulerGetsNoNewClients(t *testing.T) {
	r := start(t, nil)
	r.ready()
	d := r.describe()
	pid := d.node("scheduler-1").PID
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Kill(pid, unix.SIGCONT) }()
	eventually(t, "its readiness gone", func() bool { return strings.Contains(r.logs.String(), "health=silent") })
	for range 3 {
		if _, name := connect(t, d.Endpoint); name != "scheduler-2" {
			t.Errorf("connected to %s", name)
		}
	}
}

func TestNodeThatNeverStartsEndsTheClusterWithItsLog(t *testing.T) {
	r := start(t, func(o *Options) { o.WorkerFlags = []string{"--broken"} })
	err := <-r.done
	r.done <- nil
	if err == nil || !strings.Contains(err.Error(), "this node is broken") || !strings.Contains(err.Error(), "worker-") {
		t.Errorf("error: %v", err)
	}
}

func TestTwoClustersRunSideBySideButNotOnOneDirectory(t *testing.T) {
	one := start(t, nil)
	two := start(t, nil)
	one.ready()
	two.ready()
	if a, b := one.describe(), two.describe(); a.Endpoint == b.Endpoint || a.Nodes[0].Cluster == b.Nodes[0].Cluster {
		t.Errorf("shared addresses: %v, %v", a, b)
	}
	err := Run(t.Context(), Options{
		Dir: one.dir, Listen: "127.0.0.1:0", Schedulers: 1, Workers: 1, Replicas: 1,
		Log: slog.New(slog.DiscardHandler), Out: io.Discard,
	})
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("another cluster runs on %s (pid %d)", one.dir, os.Getpid())) {
		t.Errorf("error: %v", err)
	}
}

func TestOptionsThatCannotWorkAreRefused(t *testing.T) {
	good := Options{Dir: "d", Listen: "127.0.0.1:0", Schedulers: 2, Workers: 3, Executors: 1, Replicas: 2}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for want, change := range map[string]func(*Options){
		"--schedulers: 0 is not between": func(o *Options) { o.Schedulers = 0 },
		"--workers: 999 is not between":  func(o *Options) { o.Workers = 999 },
		"--replicas: 4 copies":           func(o *Options) { o.Replicas = 4 },
		"is not a loopback address":      func(o *Options) { o.Listen = "0.0.0.0:8980" },
		"is no host:port":                func(o *Options) { o.Listen = "8980" },
	} {
		o := good
		change(&o)
		if err := o.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}

func TestLogKeepsItsEndWithinBounds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.log")
	l, err := openLog(path, 100)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for i := range 100 {
		fmt.Fprintf(l, "line %d\n", i)
	}
	for _, p := range []string{path, path + ".1"} {
		if info, err := os.Stat(p); err != nil || info.Size() > 100 {
			t.Errorf("%s: %v, %v", p, info, err)
		}
	}
	if tail := l.tail(18); tail != "line 98\nline 99\n" {
		t.Errorf("tail: %q", tail)
	}
}
