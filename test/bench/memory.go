package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"golang.org/x/sync/errgroup"

	"github.com/remex-build/terraform-provider-remex/test/reapi"
)

// measureRest reads the memory of a fresh cluster's nodes.
func measureRest(ctx context.Context, w *tabwriter.Writer, s *server) error {
	d, err := describe(s.dir)
	if err != nil {
		return err
	}
	for _, n := range d.Nodes {
		rss := resident(n.PID)
		heap, err := liveHeap(ctx, n.Ops)
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "memory at rest: %s\t%s\t%.1f MiB\t\t\tresident; live heap %.1f MiB\n", n.Name, s.name, float64(rss)/(1<<20), float64(heap)/(1<<20))
		w.Flush()
	}
	return nil
}

// measureMemory fills the action cache, the disks' index and the queue, and
// divides what Go's heap grew by. Garbage is collected before each reading:
// /debug/pprof/heap?gc=1 does that.
func measureMemory(ctx context.Context, w *tabwriter.Writer, s *server) error {
	d, err := describe(s.dir)
	if err != nil {
		return err
	}
	ops := map[string][]string{}
	for _, n := range d.Nodes {
		ops[n.Role] = append(ops[n.Role], n.Ops)
	}
	grown := func(role string, fill func() error) (float64, error) {
		before, err := sumHeap(ctx, ops[role])
		if err != nil {
			return 0, err
		}
		if err := fill(); err != nil {
			return 0, err
		}
		after, err := sumHeap(ctx, ops[role])
		return float64(after - before), err
	}

	const entries = 20000
	grew, err := grown("scheduler", func() error { return s.fillActionCache(ctx, entries) })
	if err != nil {
		return err
	}
	copies := float64(len(ops["scheduler"]))
	fmt.Fprintf(w, "memory: action-cache entry\t%s\t%.0f B\t\t\tper entry and scheduler, its own ~130 B among it\n", s.name, grew/entries/copies)
	w.Flush()

	const blobs = 100000
	grew, err = grown("worker", func() error {
		for range blobs / 4000 {
			if err := s.Upload(ctx, many(4000, 32)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "memory: index of a blob\t%s\t%.0f B\t\t\tper blob and copy\n", s.name, grew/blobs/2)
	w.Flush()

	const queued = 10000
	actions, err := s.sleepers(ctx, queued)
	if err != nil {
		return err
	}
	before, err := sumHeap(ctx, ops["scheduler"])
	if err != nil {
		return err
	}
	held, release := context.WithCancel(ctx)
	defer release()
	for _, a := range actions {
		stream, err := s.Exec.Execute(held, &repb.ExecuteRequest{ActionDigest: a})
		if err != nil {
			return err
		}
		if _, err := stream.Recv(); err != nil {
			return err
		}
	}
	waited, err := sumHeap(ctx, ops["scheduler"])
	if err != nil {
		return err
	}
	release()
	if err := awaitNoStreams(ctx, ops["scheduler"]); err != nil { // their actions stay for a minute
		return err
	}
	left, err := sumHeap(ctx, ops["scheduler"])
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "memory: queued action\t%s\t%.0f B\t\t\ton the scheduler that owns it and the one that was asked\n", s.name, float64(left-before)/queued)
	fmt.Fprintf(w, "memory: client that waits on one\t%s\t%.0f B\t\t\tits gRPC stream; goroutine stacks come on top\n", s.name, float64(waited-left)/queued)
	w.Flush()
	return nil
}

func (s *server) fillActionCache(ctx context.Context, n int) error {
	out := salt()
	if err := s.Upload(ctx, [][]byte{out}); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(64)
	for range n {
		g.Go(func() error { return s.acPut(ctx, reapi.Name(salt()), reapi.Name(out)) })
	}
	return g.Wait()
}

// sleepers uploads n actions that take so long that most of them wait for the
// first.
func (s *server) sleepers(ctx context.Context, n int) ([]*repb.Digest, error) {
	root, rootDigest := reapi.Message(&repb.Directory{})
	command, commandDigest := reapi.Message(&repb.Command{Arguments: []string{"/bin/sleep", "30"}})
	blobs := [][]byte{root, command}
	var digests []*repb.Digest
	for range n {
		action, digest := reapi.Message(&repb.Action{CommandDigest: commandDigest, InputRootDigest: rootDigest, Salt: salt()})
		blobs, digests = append(blobs, action), append(digests, digest)
	}
	return digests, s.Upload(ctx, blobs)
}

func sumHeap(ctx context.Context, ops []string) (int64, error) {
	var sum int64
	for _, o := range ops {
		h, err := liveHeap(ctx, o)
		if err != nil {
			return 0, err
		}
		sum += h
	}
	return sum, nil
}

// awaitNoStreams waits until the goroutines of calls are gone.
func awaitNoStreams(ctx context.Context, ops []string) error {
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		var sum float64
		for _, o := range ops {
			n, err := metric(ctx, o, "go_goroutines")
			if err != nil {
				return err
			}
			sum += n
		}
		if sum < 500 {
			return nil
		}
	}
	return errors.New("schedulers still serve calls whose client has gone")
}

// liveHeap collects a node's garbage and reads how much is left.
func liveHeap(ctx context.Context, ops string) (int64, error) {
	if _, err := get(ctx, "http://"+ops+"/debug/pprof/heap?gc=1"); err != nil {
		return 0, err
	}
	v, err := metric(ctx, ops, "go_memstats_heap_alloc_bytes")
	return int64(v), err
}

func metric(ctx context.Context, ops, name string) (float64, error) {
	text, err := get(ctx, "http://"+ops+"/metrics")
	if err != nil {
		return 0, err
	}
	for line := range strings.SplitSeq(text, "\n") {
		if v, ok := strings.CutPrefix(line, name+" "); ok {
			return strconv.ParseFloat(v, 64)
		}
	}
	return 0, fmt.Errorf("%s has no metric %s", ops, name)
}

func get(ctx context.Context, url string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", url, resp.Status)
	}
	return string(b), err
}
