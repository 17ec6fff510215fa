package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"sync"
	"time"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"github.com/remex-build/terraform-provider-remex/test/reapi"
)

func actionMeasurements(d time.Duration) []measurement {
	var ms []measurement
	for _, n := range []int{1, 8, 64} {
		ms = append(ms, measurement{
			name: fmt.Sprintf("trivial action, %d in flight", n), limit: limitOf(n),
			run: func(ctx context.Context, s *server) (result, error) { return trivial(ctx, s, n, d) },
		})
	}
	for _, n := range []int{1000, 10000} {
		for _, kind := range []string{"all new", "all known", "one new"} {
			ms = append(ms, measurement{
				name: fmt.Sprintf("action with %d inputs, %s", n, kind), limit: "x link(2) of them",
				run: func(ctx context.Context, s *server) (result, error) { return manyInputs(ctx, s, n, kind) },
			})
		}
	}
	return append(ms, measurement{
		name: "build-like action, 8 in flight", limit: "of fork+exec rate",
		run: func(ctx context.Context, s *server) (result, error) { return buildLike(ctx, s, 8, d) },
	})
}

func limitOf(inFlight int) string {
	if inFlight == 1 {
		return "fork+execs"
	}
	return "of fork+exec rate"
}

// latencies runs f with n in flight for d and returns how long each took.
func latencies(ctx context.Context, n int, d time.Duration, f func(context.Context) error) ([]time.Duration, time.Duration, error) {
	var mu sync.Mutex
	var all []time.Duration
	g, ctx := errgroup.WithContext(ctx)
	start := time.Now()
	for range n {
		g.Go(func() error {
			for time.Since(start) < d && ctx.Err() == nil {
				t := time.Now()
				if err := f(ctx); err != nil {
					return err
				}
				mu.Lock()
				all = append(all, time.Since(t))
				mu.Unlock()
			}
			return nil
		})
	}
	err := g.Wait()
	slices.Sort(all)
	return all, time.Since(start), err
}

// timed turns latencies into a figure: the median with one in flight, else the rate.
func timed(n int, all []time.Duration, took time.Duration) result {
	p50, p99 := all[len(all)/2], all[len(all)*99/100]
	perSecond := float64(len(all)) / took.Seconds()
	if n == 1 {
		return result{
			value: float64(p50.Microseconds()) / 1000, unit: "ms", ops: len(all),
			note: fmt.Sprintf("p99 %s", p99.Round(10*time.Microsecond)),
		}
	}
	return result{
		value: perSecond, unit: "/s", ops: len(all),
		note: fmt.Sprintf("p50 %s p99 %s", p50.Round(10*time.Microsecond), p99.Round(10*time.Microsecond)),
	}
}

// trivial runs actions that nobody has seen, which do nothing.
func trivial(ctx context.Context, s *server, n int, d time.Duration) (result, error) {
	root, rootDigest := reapi.Message(&repb.Directory{})
	command, commandDigest := reapi.Message(&repb.Command{Arguments: []string{"/bin/true"}, Platform: s.platform})
	if err := s.Upload(ctx, [][]byte{root, command}); err != nil {
		return result{}, err
	}
	one := func(ctx context.Context) error {
		action, digest := reapi.Message(&repb.Action{CommandDigest: commandDigest, InputRootDigest: rootDigest, Salt: salt(), Platform: s.platform})
		if err := s.Upload(ctx, [][]byte{action}); err != nil {
			return err
		}
		_, err := s.Execute(ctx, digest, false)
		return err
	}
	for range 10 { // the first ones start what later ones find running
		if err := one(ctx); err != nil {
			return result{}, err
		}
	}
	all, took, err := latencies(ctx, n, d, one)
	if err != nil {
		return result{}, err
	}
	r := timed(n, all, took)
	if n == 1 {
		r.ratio = func(l limits) float64 { return all[len(all)/2].Seconds() / l.forkOne.Seconds() }
	} else {
		r.ratio = func(l limits) float64 { return r.value / l.forkExec }
	}
	return r, nil
}

// manyInputs runs one action with n small input files in directories of 100.
func manyInputs(ctx context.Context, s *server, n int, kind string) (result, error) {
	const rounds = 5
	blobs, dirs := inputTree(n, salt())
	if kind != "all new" {
		if err := s.Upload(ctx, slices.Concat(blobs, dirs.blobs)); err != nil {
			return result{}, err
		}
		// Once before, so that workers have them too.
		for range 4 {
			if _, err := s.runTree(ctx, dirs.root); err != nil {
				return result{}, err
			}
		}
	}
	var took []time.Duration
	for range rounds {
		start := time.Now()
		switch kind {
		case "all new":
			blobs, dirs = inputTree(n, salt())
		case "one new":
			blobs[n/2] = slices.Concat([]byte("changed "), salt())
			dirs = directories(blobs)
		}
		made := time.Since(start) // the client's own work is not the server's
		if err := s.UploadMissing(ctx, slices.Concat(blobs, dirs.blobs)); err != nil {
			return result{}, err
		}
		if _, err := s.runTree(ctx, dirs.root); err != nil {
			return result{}, err
		}
		took = append(took, time.Since(start)-made)
	}
	slices.Sort(took)
	median := took[len(took)/2]
	return result{
		value: float64(median.Microseconds()) / 1000, unit: "ms", ops: rounds,
		note:  "upload included",
		ratio: func(l limits) float64 { return median.Seconds() / (float64(n) / l.link) },
	}, nil
}

type tree struct {
	blobs [][]byte // the Directory messages
	root  *repb.Digest
}

func inputTree(n int, salt []byte) ([][]byte, tree) {
	blobs := make([][]byte, n)
	for i := range blobs {
		blobs[i] = fmt.Appendf(nil, "input %d of %x\n", i, salt)
	}
	return blobs, directories(blobs)
}

func directories(files [][]byte) tree {
	var t tree
	root := &repb.Directory{}
	for i := 0; i < len(files); i += 100 {
		dir := &repb.Directory{}
		for j := i; j < min(i+100, len(files)); j++ {
			dir.Files = append(dir.Files, &repb.FileNode{Name: fmt.Sprintf("f%06d", j), Digest: reapi.Name(files[j])})
		}
		b, d := reapi.Message(dir)
		t.blobs = append(t.blobs, b)
		root.Directories = append(root.Directories, &repb.DirectoryNode{Name: fmt.Sprintf("d%06d", i), Digest: d})
	}
	b, d := reapi.Message(root)
	t.blobs, t.root = append(t.blobs, b), d
	return t
}

// runTree runs an action that nobody has seen on the input root.
func (s *server) runTree(ctx context.Context, root *repb.Digest) (*repb.ActionResult, error) {
	command, commandDigest := reapi.Message(&repb.Command{Arguments: []string{"/bin/true"}, Platform: s.platform})
	action, digest := reapi.Message(&repb.Action{CommandDigest: commandDigest, InputRootDigest: root, Salt: salt(), Platform: s.platform})
	if err := s.Upload(ctx, [][]byte{command, action}); err != nil {
		return nil, err
	}
	return s.Execute(ctx, digest, false)
}

// buildLike does what a build does for one action: ask the action cache, find
// out which of 20 inputs are missing, upload those, execute, fetch the output.
func buildLike(ctx context.Context, s *server, n int, d time.Duration) (result, error) {
	shared, _ := inputTree(19, salt())
	one := func(ctx context.Context) error {
		files := append(slices.Clone(shared), slices.Concat([]byte("source "), salt()))
		t := directories(files)
		command, commandDigest := reapi.Message(&repb.Command{
			Arguments: []string{"/bin/sh", "-c", "cat d000000/f000019 > out"}, OutputPaths: []string{"out"}, OutputFiles: []string{"out"}, Platform: s.platform,
		})
		action, digest := reapi.Message(&repb.Action{CommandDigest: commandDigest, InputRootDigest: t.root, Platform: s.platform})
		if _, err := s.AC.GetActionResult(ctx, &repb.GetActionResultRequest{ActionDigest: digest}); err == nil {
			return fmt.Errorf("a new action is in the cache")
		}
		if err := s.UploadMissing(ctx, slices.Concat(files, t.blobs, [][]byte{command, action})); err != nil {
			return err
		}
		res, err := s.Execute(ctx, digest, false)
		if err != nil {
			return err
		}
		if len(res.OutputFiles) != 1 {
			return fmt.Errorf("%d outputs", len(res.OutputFiles))
		}
		resp, err := s.CAS.BatchReadBlobs(ctx, &repb.BatchReadBlobsRequest{Digests: []*repb.Digest{res.OutputFiles[0].Digest}})
		if err != nil {
			return err
		}
		if !proto.Equal(reapi.Name(resp.Responses[0].Data), reapi.Name(files[19])) {
			return fmt.Errorf("the output is not the input")
		}
		return nil
	}
	if err := one(ctx); err != nil {
		return result{}, err
	}
	all, took, err := latencies(ctx, n, d, one)
	if err != nil {
		return result{}, err
	}
	r := timed(n, all, took)
	r.ratio = func(l limits) float64 { return r.value / l.forkExec }
	return r, nil
}

func salt() []byte { return []byte(rand.Text()) }
