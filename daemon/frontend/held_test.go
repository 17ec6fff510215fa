package frontend_test

import (
	"context"
	"testing"
	"time"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	bspb "google.golang.org/genproto/googleapis/bytestream"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

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
	if err := w.budget.Acquire(t.Context(), budget); err != nil { // once what they held is back
		t.Fatal(err)
	}
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
	w.budget.Release(t.Context(), budget)
	for name, call := range calls {
		if err := call(t.Context()); err != nil {
			t.Errorf("%s, once there is room: %v", name, err)
		}
	}
	if err := w.budget.Acquire(t.Context(), budget); err != nil {
		t.Fatal(err)
	}
}

// Each upload takes a flow-control window of memory even while it waits, so
// there is a last one.
func TestUploadsAreCounted(t *testing.T) {
	w := start(t, func(o *frontend.Options) { o.MaxUploads = 2 })
	data := random(200 << 10)
	name := uploadName(digest.Of(digest.SHA256, data))
	var open []bspb.ByteStream_WriteClient
	for range 2 {
		s, err := w.bytes().Write(t.Context())
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
		_, err := w.cas().BatchUpdateBlobs(t.Context(), &repb.BatchUpdateBlobsRequest{Requests: []*repb.BatchUpdateBlobsRequest_Request{
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
	if err := open[0].Send(&bspb.WriteRequest{WriteOffset: 1000, Data: data[1000:], FinishWrite: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := open[0].CloseAndRecv(); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		if err = batch(); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil {
		t.Errorf("after one has ended: %v", err)
	}
}
