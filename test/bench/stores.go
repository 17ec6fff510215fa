package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/remex-build/terraform-provider-remex/test/reapi"
)

func storeMeasurements(d time.Duration) []measurement {
	return []measurement{
		{name: "CAS: upload 4 KiB, 64 in flight", limit: "of RPC rate", run: func(ctx context.Context, s *server) (result, error) {
			return perSecond(ctx, 64, d, func(ctx context.Context) error { return s.Upload(ctx, [][]byte{random(4096)}) })
		}},
		{name: "CAS: upload batches of 100 x 4 KiB, 8 in flight", limit: "of create+write rate", run: func(ctx context.Context, s *server) (result, error) {
			return batches(ctx, 100, d, func(ctx context.Context) error { return s.Upload(ctx, many(100, 4096)) }, func(l limits) float64 { return l.create })
		}},
		{name: "CAS: download batches of 100 x 4 KiB, 8 in flight", limit: "of create+write rate", run: func(ctx context.Context, s *server) (result, error) {
			return downloadBatches(ctx, s, d)
		}},
		{name: "CAS: upload 64 MiB", limit: "of sha256", run: func(ctx context.Context, s *server) (result, error) {
			return throughput(3, 64<<20, func() error { return s.Write(ctx, random(64<<20)) })
		}},
		{name: "CAS: download 64 MiB", limit: "of sha256", run: func(ctx context.Context, s *server) (result, error) {
			b := random(64 << 20)
			if err := s.Write(ctx, b); err != nil {
				return result{}, err
			}
			return throughput(5, len(b), func() error {
				n, err := s.Read(ctx, reapi.Name(b))
				if err == nil && n != int64(len(b)) {
					err = fmt.Errorf("read %d of %d bytes", n, len(b))
				}
				return err
			})
		}},
		{name: "CAS: FindMissing of 1,000, 8 in flight", limit: "digests per RPC", run: findMissing(d)},
		{name: "AC: get, 64 in flight", limit: "of RPC rate", run: func(ctx context.Context, s *server) (result, error) { return acGet(ctx, s, d) }},
		{name: "AC: miss, 64 in flight", limit: "of RPC rate", run: func(ctx context.Context, s *server) (result, error) {
			return perSecond(ctx, 64, d, func(ctx context.Context) error {
				_, err := s.AC.GetActionResult(ctx, &repb.GetActionResultRequest{ActionDigest: reapi.Name(salt())})
				if status.Code(err) != codes.NotFound {
					return fmt.Errorf("a miss is %w", err)
				}
				return nil
			})
		}},
		{name: "AC: update, 8 in flight", limit: "of RPC rate", run: func(ctx context.Context, s *server) (result, error) {
			b := salt()
			if err := s.Upload(ctx, [][]byte{b}); err != nil {
				return result{}, err
			}
			return perSecond(ctx, 8, d, func(ctx context.Context) error { return s.acPut(ctx, reapi.Name(salt()), reapi.Name(b)) })
		}},
	}
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}

func many(n, size int) [][]byte {
	bs := make([][]byte, n)
	for i := range bs {
		bs[i] = random(size)
	}
	return bs
}

// perSecond is a rate of small calls, held against the rate of empty ones.
func perSecond(ctx context.Context, n int, d time.Duration, f func(context.Context) error) (result, error) {
	all, took, err := latencies(ctx, n, d, f)
	if err != nil {
		return result{}, err
	}
	r := timed(n, all, took)
	r.ratio = func(l limits) float64 { return r.value / l.rpc }
	return r, nil
}

// batches is a rate of blobs that travel size at a time.
func batches(ctx context.Context, size int, d time.Duration, f func(context.Context) error, limit func(limits) float64) (result, error) {
	all, took, err := latencies(ctx, 8, d, f)
	if err != nil {
		return result{}, err
	}
	v := float64(size*len(all)) / took.Seconds()
	return result{value: v, unit: "blobs/s", ops: size * len(all), ratio: func(l limits) float64 { return v / limit(l) }}, nil
}

func downloadBatches(ctx context.Context, s *server, d time.Duration) (result, error) {
	const n = 2000
	blobs := many(n, 4096)
	if err := s.Upload(ctx, blobs); err != nil {
		return result{}, err
	}
	ds := make([]*repb.Digest, n)
	for i, b := range blobs {
		ds[i] = reapi.Name(b)
	}
	next := make(chan int)
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		for i := 0; ; i = (i + 100) % n {
			select {
			case next <- i:
			case <-ctx.Done():
				return
			}
		}
	}()
	return batches(ctx, 100, d, func(ctx context.Context) error {
		i := <-next
		resp, err := s.CAS.BatchReadBlobs(ctx, &repb.BatchReadBlobsRequest{Digests: ds[i : i+100]})
		if err != nil {
			return err
		}
		for _, r := range resp.Responses {
			if r.Status.GetCode() != 0 || len(r.Data) != 4096 {
				return errors.New("a blob is not there")
			}
		}
		return nil
	}, func(l limits) float64 { return l.create })
}

// throughput is the median rate at which one blob of size bytes moves.
func throughput(rounds, size int, f func() error) (result, error) {
	best := time.Duration(0)
	for range rounds {
		start := time.Now()
		if err := f(); err != nil {
			return result{}, err
		}
		if took := time.Since(start); best == 0 || took < best {
			best = took
		}
	}
	v := float64(size) / best.Seconds()
	return result{value: v / 1e6, unit: "MB/s", ops: rounds, note: fmt.Sprintf("best of %d", rounds), ratio: func(l limits) float64 { return v / l.sha256 }}, nil
}

func findMissing(d time.Duration) func(context.Context, *server) (result, error) {
	return func(ctx context.Context, s *server) (result, error) {
		blobs := many(1000, 32)
		if err := s.Upload(ctx, blobs[:500]); err != nil {
			return result{}, err
		}
		ds := make([]*repb.Digest, len(blobs))
		for i, b := range blobs {
			ds[i] = reapi.Name(b)
		}
		return batches(ctx, len(ds), d, func(ctx context.Context) error {
			gone, err := s.Missing(ctx, ds)
			if err == nil && len(gone) != 500 {
				err = fmt.Errorf("%d of 500 are said to be missing", len(gone))
			}
			return err
		}, func(l limits) float64 { return l.rpc })
	}
}

func (s *server) acPut(ctx context.Context, action, output *repb.Digest) error {
	_, err := s.AC.UpdateActionResult(ctx, &repb.UpdateActionResultRequest{
		ActionDigest: action,
		ActionResult: &repb.ActionResult{OutputFiles: []*repb.OutputFile{{Path: "out", Digest: output}}},
	})
	return err
}

func acGet(ctx context.Context, s *server, d time.Duration) (result, error) {
	out := salt()
	if err := s.Upload(ctx, [][]byte{out}); err != nil {
		return result{}, err
	}
	action := reapi.Name(salt())
	if err := s.acPut(ctx, action, reapi.Name(out)); err != nil {
		if status.Code(err) == codes.Unimplemented {
			return result{}, errors.New("action results cannot be uploaded")
		}
		return result{}, err
	}
	return perSecond(ctx, 64, d, func(ctx context.Context) error {
		_, err := s.AC.GetActionResult(ctx, &repb.GetActionResultRequest{ActionDigest: action})
		return err
	})
}
