package dev

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// scheduler is a backend whose health the test decides.
type scheduler struct {
	lis   net.Listener
	ops   *httptest.Server
	ready atomic.Bool
}

func newScheduler(t *testing.T, name string) *scheduler {
	t.Helper()
	s := &scheduler{}
	s.ops = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if !s.ready.Load() {
			http.Error(w, "draining", http.StatusServiceUnavailable)
		}
	}))
	var err error
	if s.lis, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	go hello(s.lis, name)
	t.Cleanup(func() {
		s.ops.Close()
		_ = s.lis.Close()
	})
	return s
}

// balance runs a balancer over the schedulers and returns its address.
func balance(t *testing.T, up func(), ss ...*scheduler) (endpoint string, stop func()) {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var bs []*backend
	for _, s := range ss {
		bs = append(bs, &backend{name: "s", public: s.lis.Addr().String(), ops: strings.TrimPrefix(s.ops.URL, "http://"), up: up})
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- newBalancer(lis, bs, slog.New(slog.DiscardHandler)).Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return lis.Addr().String(), stop
}

func TestClientWaitsForASchedulerToBecomeReady(t *testing.T) {
	s := newScheduler(t, "scheduler-1")
	endpoint, _ := balance(t, func() {}, s)
	timer := time.AfterFunc(300*time.Millisecond, func() { s.ready.Store(true) })
	defer timer.Stop()
	if _, name := connect(t, endpoint); name != "scheduler-1" {
		t.Errorf("connected to %s", name)
	}
}

func TestSchedulerThatIsNotReadyIsBetterThanNone(t *testing.T) {
	t.Parallel()
	s := newScheduler(t, "scheduler-1")
	endpoint, _ := balance(t, func() {}, s)
	if _, name := connect(t, endpoint); name != "scheduler-1" {
		t.Errorf("connected to %s", name)
	}
}

func TestDrainingSchedulerKeepsItsClientsAndGetsNoMore(t *testing.T) {
	one, two := newScheduler(t, "scheduler-1"), newScheduler(t, "scheduler-2")
	one.ready.Store(true)
	up := make(chan struct{}, 10)
	endpoint, stop := balance(t, func() { up <- struct{}{} }, one, two)
	<-up
	old, _ := connect(t, endpoint)
	two.ready.Store(true)
	<-up
	one.ready.Store(false)
	eventually(t, "only scheduler-2 gets connections", func() bool {
		_, a := connect(t, endpoint)
		_, b := connect(t, endpoint)
		return a == "scheduler-2" && b == "scheduler-2"
	})
	b := make([]byte, 2)
	if _, err := old.Write([]byte("hi")); err != nil {
		t.Error(err)
	}
	if _, err := io.ReadFull(old, b); err != nil || string(b) != "hi" {
		t.Errorf("the old connection: %q, %v", b, err)
	}
	stop()
	if _, err := old.Read(b); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the balancer's end is seen as %v", err)
	}
}
