package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// limits are what the machine itself does, measured in the same run.
type limits struct {
	forkExec float64       // processes a second, both cores at it
	forkOne  time.Duration // one fork+exec+wait of /bin/true
	rpc      float64       // unary gRPC calls a second over loopback, 64 in flight
	rpcOne   time.Duration // one such call at a time
	sha256   float64       // bytes a second, one core
	link     float64       // link(2) a second
	create   float64       // create + write 4 KiB + close a second
}

const limitTime = time.Second

func measureLimits(ctx context.Context) limits {
	var l limits
	l.forkOne = time.Duration(float64(time.Second) / rate(1, limitTime, func(int) { _ = exec.CommandContext(ctx, "/bin/true").Run() }))
	l.forkExec = rate(4, limitTime, func(int) { _ = exec.CommandContext(ctx, "/bin/true").Run() })
	l.measureRPC(ctx)
	buf := make([]byte, 1<<20)
	_, _ = rand.Read(buf)
	l.sha256 = float64(len(buf)) * rate(1, limitTime/2, func(int) { sha256.Sum256(buf) })
	dir, err := os.MkdirTemp("", "remex-bench")
	if err != nil {
		return l
	}
	defer os.RemoveAll(dir)
	src := filepath.Join(dir, "src")
	_ = os.WriteFile(src, buf[:4096], 0o600)
	l.link = rate(1, limitTime/2, func(i int) { _ = os.Link(src, filepath.Join(dir, fmt.Sprint("l", i%60000, "_", i))) })
	l.create = rate(1, limitTime/2, func(i int) { _ = os.WriteFile(filepath.Join(dir, fmt.Sprint("c", i)), buf[:4096], 0o600) })
	return l
}

func (l *limits) measureRPC(ctx context.Context) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return
	}
	s := grpc.NewServer()
	healthpb.RegisterHealthServer(s, health.NewServer())
	go func() { _ = s.Serve(lis) }()
	defer s.Stop()
	conn, err := grpc.NewClient(lis.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return
	}
	defer conn.Close()
	c := healthpb.NewHealthClient(conn)
	call := func(int) { _, _ = c.Check(ctx, &healthpb.HealthCheckRequest{}) }
	rate(1, limitTime/5, call)
	l.rpcOne = time.Duration(float64(time.Second) / rate(1, limitTime, call))
	l.rpc = rate(64, limitTime, call)
}

func (l *limits) print() {
	fmt.Printf("This machine: fork+exec %.0f/s (one takes %s); unary gRPC over loopback %.0f/s (one takes %s); sha256 %.0f MB/s; link(2) %.0f/s; create+write 4 KiB %.0f/s\n",
		l.forkExec, l.forkOne.Round(time.Microsecond), l.rpc, l.rpcOne.Round(time.Microsecond), l.sha256/1e6, l.link, l.create)
}

// rate is how often a second f gets done with n of it in flight, over d.
func rate(n int, d time.Duration, f func(i int)) float64 {
	var next atomic.Int64
	start := time.Now()
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			for time.Since(start) < d {
				f(int(next.Add(1)))
			}
		})
	}
	wg.Wait()
	return float64(next.Load()) / time.Since(start).Seconds()
}
