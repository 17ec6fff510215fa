package frontend_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	bspb "google.golang.org/genproto/googleapis/bytestream"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	"github.com/remex-build/terraform-provider-remex/daemon/frontend"
)

// Answers are charged whatever they are made of: large ones wait for room
// before they are read, small ones do not wait at all.
func TestLargeAnswersWaitForRoom(t *testing.T) {
	w := start(t)
	large := &repb.ActionResult{StdoutRaw: random(1 << 20)}
	w.plant(t, sha("large"), large)
	w.plant(t, sha("small"), &repb.ActionResult{ExitCode: 0, StdoutRaw: []byte("out")})
	cached := w.action(t, nil)
	action, err := digest.Parse(digest.SHA256, cached.Hash, cached.SizeBytes)
	if err != nil {
		t.Fatal(err)
	}
	w.plant(t, action, large)
	w.executor.Know(frontend.Update{Name: "op", Action: sha("a"), Done: true, Response: marshal(t, &repb.ExecuteResponse{Result: large})})
	get := func(ctx context.Context, name string) error {
		_, err := w.ac().GetActionResult(ctx, &repb.GetActionResultRequest{InstanceName: "i", ActionDigest: wire(sha(name))})
		return err
	}
	calls := map[string]func(ctx context.Context) error{
		"GetActionResult": func(ctx context.Context) error { return get(ctx, "large") },
		"Execute": func(ctx context.Context) error {
			_, err := w.execute(ctx, &repb.ExecuteRequest{InstanceName: "i", ActionDigest: cached})
			return err
		},
		"WaitExecution": func(ctx context.Context) error {
			_, err := follow(w.exec().WaitExecution(ctx, &repb.WaitExecutionRequest{Name: "op"}))
			return err
		},
		"UpdateActionResult": func(ctx context.Context) error {
			_, err := w.ac().UpdateActionResult(ctx, &repb.UpdateActionResultRequest{InstanceName: "i", ActionDigest: wire(sha("b")), ActionResult: large})
			return err
		},
	}
	// The action and its command are remembered after this, and need no room.
	for name, call := range calls {
		if err := call(t.Context()); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	w.fill(t)
	if err := get(t.Context(), "small"); err != nil {
		t.Errorf("a small answer: %v", err)
	}
	for name, call := range calls {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if err := call(ctx); status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("%s without room in the budget: %v", name, err)
		}
		cancel()
	}
	w.empty(t)
	for name, call := range calls {
		if err := call(t.Context()); err != nil {
			t.Errorf("%s, once there is room: %v", name, err)
		}
	}
	w.fill(t)
}

// Each upload takes a flow-control window of memory, so there is a last one:
// others wait a while, and are refused.
func TestUploadsAreCounted(t *testing.T) {
	w := start(t, func(o *frontend.Options) { o.MaxUploads = 10 }) // of which one connection has two
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
	defer cancel()
	data := random(200 << 10)
	name := uploadName(digest.Of(digest.SHA256, data))
	var open []bspb.ByteStream_WriteClient
	for range 2 {
		s, err := w.bytes().Write(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Send(&bspb.WriteRequest{ResourceName: name, Data: data[:1000]}); err != nil {
			t.Fatal(err)
		}
		open = append(open, s)
	}
	small := []byte("small")
	batch := func() error {
		_, err := w.cas().BatchUpdateBlobs(ctx, &repb.BatchUpdateBlobsRequest{Requests: []*repb.BatchUpdateBlobsRequest_Request{
			{Digest: wire(digest.Of(digest.SHA256, small)), Data: small},
		}})
		return err
	}
	for range 1000 {
		if w.store.Calls("Upload") == len(open) {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	err := batch()
	wantCode(t, err, codes.ResourceExhausted)
	if d := status.Convert(err).Details(); len(d) != 1 || d[0].(*errdetails.RetryInfo).RetryDelay.AsDuration() <= 0 {
		t.Errorf("details %v", d)
	}
	for _, s := range open {
		if err := s.Send(&bspb.WriteRequest{WriteOffset: 1000, Data: data[1000:], FinishWrite: true}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.CloseAndRecv(); err != nil {
			t.Fatal(err)
		}
	}
	for range 100 { // until the places are free
		if err = batch(); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil {
		t.Errorf("after they have ended: %v", err)
	}
}

// unread starts a call whose answers nobody reads.
func unread(t *testing.T, c *grpc.ClientConn, method string, req proto.Message) {
	t.Helper()
	s, err := c.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, method)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.SendMsg(req); err != nil {
		t.Fatal(err)
	}
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}
}

const readMethod = "/google.bytestream.ByteStream/Read"

// Whatever one connection leaves unread, another one is served.
func TestUnreadAnswersLeaveRoomForOthers(t *testing.T) {
	find := &repb.FindMissingBlobsRequest{}
	for i := range 40_000 {
		find.BlobDigests = append(find.BlobDigests, wire(sha(fmt.Sprint(i))))
	}
	trees := &repb.ActionResult{OutputDirectories: []*repb.OutputDirectory{
		{Path: "d", TreeDigest: &repb.Digest{Hash: sha("x").Hash(), SizeBytes: budget}}, // more than a share: a miss
	}}
	for name, calls := range map[string]func(t *testing.T, w *world, c *grpc.ClientConn){
		"FindMissingBlobs": func(t *testing.T, _ *world, c *grpc.ClientConn) {
			for range 10 {
				unread(t, c, repb.ContentAddressableStorage_FindMissingBlobs_FullMethodName, find)
			}
		},
		"a Read, and trees as large as the budget": func(t *testing.T, w *world, c *grpc.ClientConn) {
			unread(t, c, readMethod, &bspb.ReadRequest{ResourceName: "blobs/" + w.store.Add(random(1<<20)).String()})
			w.plant(t, sha("trees"), trees)
			time.Sleep(50 * time.Millisecond)
			unread(t, w.dial(), repb.ActionCache_GetActionResult_FullMethodName, &repb.GetActionResultRequest{InstanceName: "i", ActionDigest: wire(sha("trees"))})
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := start(t)
			calls(t, w, w.dial())
			time.Sleep(200 * time.Millisecond)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			d := w.store.Add([]byte("blob"))
			if _, err := w.cas().BatchReadBlobs(ctx, &repb.BatchReadBlobsRequest{Digests: []*repb.Digest{wire(d)}}); err != nil {
				t.Error(err)
			}
		})
	}
}

// An answer of which little is left counts for that little.
func TestUnreadAnswersCountForTheirSize(t *testing.T) {
	w := start(t)
	w.executor.Know(frontend.Update{Name: "op", Action: sha("a"), Done: true, Response: marshal(t, &repb.ExecuteResponse{
		Result: &repb.ActionResult{StdoutRaw: random(200 << 10)},
	})})
	unread(t, w.dial(), repb.Execution_WaitExecution_FullMethodName, &repb.WaitExecutionRequest{Name: "op"})
	time.Sleep(100 * time.Millisecond)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := w.answers.Acquire(ctx, budget-1<<20); err != nil {
		t.Error("200 KiB hold more than 1 MiB:", err)
	}
	w.answers.Release(ctx, budget-1<<20)
}

// A client that copies waits with its uploads for its reads.
func TestUploadsLeaveRoomForReads(t *testing.T) {
	w := start(t)
	for range 32 { // more than a connection's share
		if _, err := w.bytes().Write(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(100 * time.Millisecond)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	s, err := w.bytes().Read(ctx, &bspb.ReadRequest{ResourceName: "blobs/" + w.store.Add(random(200<<10)).String()})
	if err == nil {
		_, err = s.Recv()
	}
	if err != nil {
		t.Error(err)
	}
}

// panicking is a store that panics when told to.
type panicking struct {
	frontend.Store
	now atomic.Bool
}

func (p *panicking) GetBatch(ctx context.Context, ds []digest.Digest) []blob.Result {
	if p.now.Load() {
		panic("told to")
	}
	return p.Store.GetBatch(ctx, ds)
}

// However a call ends, what it held comes back.
func TestEarlyEndsGiveBack(t *testing.T) {
	store := &panicking{}
	w := start(t, func(o *frontend.Options) { store.Store, o.Store, o.MaxUploads = o.Store, store, 20 })
	large, small, action := w.store.Add(random(3<<20)), w.store.Add(random(60<<10)), w.action(t, nil)
	store.now.Store(true)
	_, err := w.execute(t.Context(), &repb.ExecuteRequest{InstanceName: "i", ActionDigest: action})
	wantCode(t, err, codes.Internal)
	store.now.Store(false)

	duplex := &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}
	for round := range 24 {
		ctx, cancel := context.WithCancel(t.Context())
		for _, m := range []string{
			repb.ContentAddressableStorage_BatchUpdateBlobs_FullMethodName, repb.ContentAddressableStorage_FindMissingBlobs_FullMethodName,
			repb.ContentAddressableStorage_BatchReadBlobs_FullMethodName, repb.ActionCache_UpdateActionResult_FullMethodName,
			"/google.bytestream.ByteStream/Write", readMethod,
		} {
			s, err := w.conn.NewStream(ctx, duplex, m)
			if err != nil {
				t.Fatal(err)
			}
			switch round % 6 {
			case 0: // sends nothing
			case 1:
				_ = s.CloseSend()
			case 2: // malformed
				_ = s.SendMsg(wrapperspb.Bytes([]byte("\xff\xff\xff")))
			case 3: // more than a message may have
				_ = s.SendMsg(wrapperspb.Bytes(make([]byte, 17<<20)))
			case 4:
				_ = s.SendMsg(&repb.BatchReadBlobsRequest{Digests: []*repb.Digest{wire(large), wire(small)}})
			case 5:
				_ = s.SendMsg(&bspb.ReadRequest{ResourceName: "blobs/" + large.String()})
			}
		}
		time.Sleep(time.Duration(round%5) * time.Millisecond)
		cancel()
	}
	w.fill(t)
	w.empty(t)
	if _, err := w.cas().BatchUpdateBlobs(t.Context(), &repb.BatchUpdateBlobsRequest{}); err != nil {
		t.Error("no place is left:", err)
	}
}
