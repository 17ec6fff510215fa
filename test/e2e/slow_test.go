package e2e

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"golang.org/x/sync/errgroup"
	bspb "google.golang.org/genproto/googleapis/bytestream"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/remex-build/terraform-provider-remex/test/reapi"
)

// Clients that ask for gigabytes and read none of it cost a scheduler no more
// than its stream budget, and no other client waits for them.
func TestClientsThatDoNotRead(t *testing.T) {
	const (
		budget  = 256 << 20
		clients = 8
		calls   = 100
	)
	c := fresh(t, "--schedulers=1", "--workers=2", "--executors=1", "--scheduler-flag=--stream-budget=256MiB")
	good := dial(t, c)
	small, large := make([]byte, 3<<20), make([]byte, 4<<20+1)
	rand.Read(small)
	rand.Read(large)
	if err := good.Upload(t.Context(), [][]byte{small}); err != nil {
		t.Fatal(err)
	}
	if err := good.Write(t.Context(), large); err != nil {
		t.Fatal(err)
	}
	scheduler := c.role("scheduler")[0]
	before := liveHeap(t, scheduler)
	for _, kind := range []struct {
		name, method string
		req          proto.Message
	}{
		{"batches", repb.ContentAddressableStorage_BatchReadBlobs_FullMethodName, &repb.BatchReadBlobsRequest{Digests: []*repb.Digest{reapi.Name(small)}}},
		{"streams", "/google.bytestream.ByteStream/Read", &bspb.ReadRequest{ResourceName: fmt.Sprintf("blobs/%s/%d", reapi.Name(large).Hash, len(large))}},
	} {
		t.Run(kind.name, func(t *testing.T) {
			var bad []*reapi.Client
			for range clients {
				one, err := reapi.Dial(c.addr())
				if err != nil {
					t.Fatal(err)
				}
				defer one.Close()
				bad = append(bad, one)
			}
			for i := range clients * calls {
				s, err := bad[i%clients].Conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, kind.method)
				if err != nil {
					t.Fatal(err)
				}
				if err := s.SendMsg(kind.req); err != nil {
					t.Fatal(err)
				}
				if err := s.CloseSend(); err != nil {
					t.Fatal(err)
				}
			}
			most := int64(0)
			for range 10 {
				time.Sleep(200 * time.Millisecond)
				most = max(most, liveHeap(t, scheduler)-before)
			}
			t.Logf("the scheduler's heap grew by %d KiB", most>>10)
			if most > budget {
				t.Errorf("the scheduler's heap grew by %d MiB, its stream budget is %d MiB", most>>20, budget>>20)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if n, err := good.Read(ctx, reapi.Name(large)); err != nil || n != int64(len(large)) {
				t.Errorf("another client read %d bytes: %v", n, err)
			}
			resp, err := good.CAS.BatchReadBlobs(ctx, &repb.BatchReadBlobsRequest{Digests: []*repb.Digest{reapi.Name(small)}})
			if err != nil || len(resp.Responses) != 1 || len(resp.Responses[0].Data) != len(small) {
				t.Errorf("another client's batch: %v", err)
			}
			for _, one := range bad {
				one.Close()
			}
			eventually(t, "memory is free again", 20*time.Second, func() bool { return liveHeap(t, scheduler)-before < budget/8 })
		})
	}
}

// A client that begins thousands of uploads at once, over one connection, waits
// with most of them until there is room. None is refused.
func TestManyUploadsAtOnce(t *testing.T) {
	client := dial(t, shared(t))
	var g errgroup.Group
	for i := range 3000 {
		data := make([]byte, 5000)
		rand.Read(data)
		g.Go(func() error {
			if i%2 == 0 {
				return client.Write(t.Context(), data)
			}
			return client.Upload(t.Context(), [][]byte{data})
		})
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
}

// Uploads that no worker takes for a while stay within the stream budget, with
// their flow-control windows, and leave nothing behind. Others go on.
func TestUploadsWhileWorkersStandStill(t *testing.T) {
	const (
		budget = 256 << 20
		calls  = 1000
	)
	c := fresh(t, "--schedulers=1", "--workers=2", "--executors=1", "--restart=false", "--scheduler-flag=--stream-budget=256MiB")
	good := dial(t, c)
	if err := good.Write(t.Context(), make([]byte, 5<<20)); err != nil {
		t.Fatal(err)
	}
	scheduler := c.role("scheduler")[0]
	before := liveHeap(t, scheduler)
	for _, w := range c.role("worker") {
		if err := syscall.Kill(w.PID, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		defer syscall.Kill(w.PID, syscall.SIGCONT)
	}
	bad, err := reapi.Dial(c.addr())
	if err != nil {
		t.Fatal(err)
	}
	defer bad.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	data := make([]byte, 2<<20)
	rand.Read(data)
	for i := range calls {
		wg.Go(func() {
			mine := slices.Clone(data)
			mine[0], mine[1] = byte(i), byte(i>>8)
			if i%2 == 0 {
				_ = bad.Write(ctx, mine)
			} else {
				_ = bad.Upload(ctx, [][]byte{mine})
			}
		})
	}
	most := int64(0)
	for range 8 {
		time.Sleep(250 * time.Millisecond)
		most = max(most, liveHeap(t, scheduler)-before)
	}
	t.Logf("the scheduler's heap grew by %d KiB", most>>10)
	if most > budget {
		t.Errorf("the scheduler's heap grew by %d MiB, its stream budget is %d MiB", most>>20, budget>>20)
	}
	for _, w := range c.role("worker") {
		_ = syscall.Kill(w.PID, syscall.SIGCONT)
	}
	small := make([]byte, 1000)
	rand.Read(small)
	eventually(t, "an upload of another client succeeds", time.Minute, func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		return good.Upload(ctx, [][]byte{small}) == nil && good.Write(ctx, mine(data)) == nil
	})
	cancel()
	bad.Close()
	eventually(t, "memory is free again", 20*time.Second, func() bool { return liveHeap(t, scheduler)-before < budget/4 })
}

// mine is other data of the same size.
func mine(data []byte) []byte {
	b := slices.Clone(data)
	rand.Read(b[:16])
	return b
}

// liveHeap collects a node's garbage and reads how many bytes are left.
func liveHeap(t *testing.T, n node) int64 {
	t.Helper()
	opsGet(t, n, "/debug/pprof/heap?gc=1")
	for line := range strings.SplitSeq(opsGet(t, n, "/metrics"), "\n") {
		if v, ok := strings.CutPrefix(line, "go_memstats_heap_alloc_bytes "); ok {
			f, err := strconv.ParseFloat(v, 64)
			if err != nil {
				t.Fatal(err)
			}
			return int64(f)
		}
	}
	t.Fatalf("%s does not tell its heap", n.Name)
	return 0
}

func opsGet(t *testing.T, n node, path string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+n.Ops+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s of %s: %s, %v", path, n.Name, resp.Status, err)
	}
	return string(b)
}
