package frontend_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"cloud.google.com/go/longrunning/autogen/longrunningpb"
	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	"github.com/remex-build/terraform-provider-remex/daemon/frontend"
)

// action stores an action with its command and root, which tests may change
// before, and names it.
func (w *world) action(t *testing.T, change func(*repb.Action, *repb.Command)) *repb.Digest {
	t.Helper()
	a, c := &repb.Action{}, &repb.Command{Arguments: []string{"true"}, OutputPaths: []string{"out", "second"}}
	a.InputRootDigest = w.add(t, dir("input"))
	if change != nil {
		change(a, c)
	}
	if a.CommandDigest == nil {
		a.CommandDigest = w.add(t, c)
	}
	return w.add(t, a)
}

type opStream interface {
	Recv() (*longrunningpb.Operation, error)
}

// follow reads a stream of operations to its end.
func follow(s opStream, err error) (ops []*longrunningpb.Operation, _ error) {
	if err != nil {
		return nil, err
	}
	for {
		op, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return ops, nil
		}
		if err != nil {
			return ops, err
		}
		ops = append(ops, op)
	}
}

func (w *world) execute(ctx context.Context, req *repb.ExecuteRequest) ([]*longrunningpb.Operation, error) {
	return follow(w.exec().Execute(ctx, req))
}

func response(t *testing.T, op *longrunningpb.Operation) *repb.ExecuteResponse {
	t.Helper()
	r := &repb.ExecuteResponse{}
	if !op.GetDone() || op.GetError() != nil || op.GetResponse() == nil {
		t.Fatalf("not done, or not as the API has it: %v", op)
	}
	if err := op.GetResponse().UnmarshalTo(r); err != nil {
		t.Fatal(err)
	}
	return r
}

func stage(t *testing.T, op *longrunningpb.Operation) *repb.ExecuteOperationMetadata {
	t.Helper()
	m := &repb.ExecuteOperationMetadata{}
	if err := op.GetMetadata().UnmarshalTo(m); err != nil {
		t.Fatal(err)
	}
	return m
}

// finishing is a script that ends each operation with u.
func finishing(u frontend.Update) func(context.Context, frontend.Request, func(frontend.Update) error) error {
	return func(_ context.Context, r frontend.Request, send func(frontend.Update) error) error {
		u := u
		u.Name, u.Action, u.Done = "op", r.Action, true
		return send(u)
	}
}

func marshal(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestExecute(t *testing.T) {
	w := start(t)
	d := w.action(t, func(a *repb.Action, c *repb.Command) {
		a.Timeout = durationpb.New(time.Minute)
		a.DoNotCache = true
		a.Platform = &repb.Platform{Properties: []*repb.Platform_Property{{Name: "OSFamily", Value: "linux"}}}
		c.Platform = &repb.Platform{Properties: []*repb.Platform_Property{{Name: "ignored", Value: "x"}}}
	})
	queued, started := time.Unix(100, 0), time.Unix(101, 0)
	result := &repb.ActionResult{ExitCode: 3, ExecutionMetadata: &repb.ExecutedActionMetadata{Worker: "w1"}}
	w.executor.Script = func(_ context.Context, r frontend.Request, send func(frontend.Update) error) error {
		for _, u := range []frontend.Update{
			{Stage: 2, QueuedAt: queued},
			{Stage: 3, QueuedAt: queued, StartedAt: started, Worker: "w1"},
			{Stage: 4, Done: true, Response: marshal(t, &repb.ExecuteResponse{Result: result})},
		} {
			u.Name, u.Action = "op", r.Action
			if err := send(u); err != nil {
				return err
			}
		}
		return nil
	}
	meta := marshal(t, &repb.RequestMetadata{ToolInvocationId: "build-1", TargetId: "//a"})
	ctx := metadata.AppendToOutgoingContext(t.Context(), "build.bazel.remote.execution.v2.requestmetadata-bin", string(meta))
	ops, err := w.execute(ctx, &repb.ExecuteRequest{
		InstanceName: "i", ActionDigest: d, ExecutionPolicy: &repb.ExecutionPolicy{Priority: -7},
	})
	if err != nil || len(ops) != 3 {
		t.Fatal(ops, err)
	}
	for i, want := range []repb.ExecutionStage_Value{repb.ExecutionStage_QUEUED, repb.ExecutionStage_EXECUTING, repb.ExecutionStage_COMPLETED} {
		m := stage(t, ops[i])
		if m.Stage != want || m.ActionDigest.GetHash() != d.Hash || ops[i].Name != "op" || ops[i].Done != (i == 2) {
			t.Errorf("operation %d: %v, %v", i, ops[i], m)
		}
	}
	if m := stage(t, ops[1]).PartialExecutionMetadata; m.Worker != "w1" || !m.QueuedTimestamp.AsTime().Equal(queued) || !m.WorkerStartTimestamp.AsTime().Equal(started) {
		t.Error(m)
	}
	if diff := cmp.Diff(&repb.ExecuteResponse{Result: result}, response(t, ops[2]), protocmp.Transform()); diff != "" {
		t.Error(diff)
	}

	got := w.executor.Requests()[0]
	if len(got.ActionBlob) == 0 || len(got.CommandBlob) == 0 || len(got.RootBlob) == 0 {
		t.Error("the offer lacks a blob")
	}
	got.ActionBlob, got.CommandBlob, got.RootBlob = nil, nil, nil
	action, err := digest.Parse(digest.SHA256, d.Hash, d.SizeBytes)
	if err != nil {
		t.Fatal(err)
	}
	want := frontend.Request{
		Instance: "i", Action: action, DoNotCache: true, Priority: -7, Invocation: "build-1", Metadata: meta,
		Platform: []frontend.Property{{Name: "OSFamily", Value: "linux"}}, Timeout: time.Minute, FirstOutput: "out",
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b digest.Digest) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
}

func TestExecuteReadsNothingBackThatWasJustUploaded(t *testing.T) {
	w := start(t)
	w.executor.Script = finishing(frontend.Update{Response: marshal(t, &repb.ExecuteResponse{Result: &repb.ActionResult{}})})
	root, command := marshal(t, dir("input")), marshal(t, &repb.Command{Arguments: []string{"true"}})
	action := marshal(t, &repb.Action{CommandDigest: wire(sha(string(command))), InputRootDigest: wire(sha(string(root)))})
	up := &repb.BatchUpdateBlobsRequest{}
	for _, b := range [][]byte{root, command} {
		up.Requests = append(up.Requests, &repb.BatchUpdateBlobsRequest_Request{Digest: wire(sha(string(b))), Data: b})
	}
	if _, err := w.cas().BatchUpdateBlobs(t.Context(), up); err != nil {
		t.Fatal(err)
	}
	if _, err := write(t, w, frames(uploadName(sha(string(action))), action, 0, 1<<10)...); err != nil {
		t.Fatal(err)
	}
	if _, err := w.execute(t.Context(), &repb.ExecuteRequest{ActionDigest: wire(sha(string(action)))}); err != nil {
		t.Fatal(err)
	}
	if n := w.store.Calls("GetBatch") + w.store.Calls("Get") + w.store.Calls("Missing"); n > 0 {
		t.Errorf("asked the store %d times", n)
	}
	if r := w.executor.Requests()[0]; !bytes.Equal(r.ActionBlob, action) || !bytes.Equal(r.CommandBlob, command) || !bytes.Equal(r.RootBlob, root) {
		t.Error("offers other blobs")
	}
}

func TestExecuteOfOldClients(t *testing.T) {
	w := start(t)
	w.executor.Script = finishing(frontend.Update{Response: marshal(t, &repb.ExecuteResponse{Result: &repb.ActionResult{}})})
	d := w.action(t, func(_ *repb.Action, c *repb.Command) {
		c.OutputPaths, c.OutputFiles, c.OutputDirectories = nil, []string{"f"}, []string{"d"}
		c.Platform = &repb.Platform{Properties: []*repb.Platform_Property{{Name: "Pool", Value: "x"}}}
	})
	ctx := metadata.AppendToOutgoingContext(t.Context(), "build.bazel.remote.execution.v2.requestmetadata-bin", "\xff\xffnonsense")
	if _, err := w.execute(ctx, &repb.ExecuteRequest{ActionDigest: d}); err != nil {
		t.Fatal(err)
	}
	r := w.executor.Requests()[0]
	if r.FirstOutput != "f" || len(r.Platform) != 1 || r.Platform[0].Name != "Pool" || r.Timeout != time.Hour || r.Metadata != nil {
		t.Errorf("%+v", r)
	}
}

func TestExecuteFromCache(t *testing.T) {
	w := start(t)
	d := w.action(t, nil)
	action, err := digest.Parse(digest.SHA256, d.Hash, d.SizeBytes)
	if err != nil {
		t.Fatal(err)
	}
	out := w.store.Add([]byte("out"))
	w.plant(t, action, &repb.ActionResult{StdoutDigest: wire(out)})
	w.executor.Script = finishing(frontend.Update{Response: marshal(t, &repb.ExecuteResponse{Result: &repb.ActionResult{}})})

	ops, err := w.execute(t.Context(), &repb.ExecuteRequest{InstanceName: "i", ActionDigest: d, InlineStdout: true})
	if err != nil || len(ops) != 1 {
		t.Fatal(ops, err)
	}
	if r := response(t, ops[0]); !r.CachedResult || string(r.Result.StdoutRaw) != "out" || stage(t, ops[0]).Stage != repb.ExecutionStage_COMPLETED {
		t.Error(r)
	}
	if len(w.executor.Requests()) != 0 {
		t.Fatal("executed in spite of the cache")
	}

	for name, change := range map[string]func(*repb.ExecuteRequest){
		"told to skip it":              func(r *repb.ExecuteRequest) { r.SkipCacheLookup = true },
		"a blob of the result is gone": func(*repb.ExecuteRequest) { w.store.Drop(out) },
		"the cache cannot be asked":    func(*repb.ExecuteRequest) { w.actions.Fail(blob.ErrUnavailable) },
	} {
		t.Run(name, func(t *testing.T) {
			before := len(w.executor.Requests())
			req := &repb.ExecuteRequest{InstanceName: "i", ActionDigest: d}
			change(req)
			ops, err := w.execute(t.Context(), req)
			if err != nil || response(t, ops[0]).CachedResult || len(w.executor.Requests()) != before+1 {
				t.Error(ops, err)
			}
		})
	}
}

func TestExecuteNamesAllThatIsMissing(t *testing.T) {
	w := start(t)
	gone := sha("gone")
	_, err := w.execute(t.Context(), &repb.ExecuteRequest{ActionDigest: wire(gone)})
	wantMissing(t, err, "blobs/"+gone.String())

	_, err = w.execute(t.Context(), &repb.ExecuteRequest{ActionDigest: w.action(t, func(a *repb.Action, _ *repb.Command) {
		a.CommandDigest, a.InputRootDigest = wire(sha("no command")), wire(sha("no root"))
	})})
	wantMissing(t, err, "blobs/"+sha("no command").String(), "blobs/"+sha("no root").String())

	large := sha(string(random(100 << 10)))
	_, err = w.execute(t.Context(), &repb.ExecuteRequest{ActionDigest: w.action(t, func(a *repb.Action, _ *repb.Command) {
		a.InputRootDigest = wire(large)
	})})
	wantMissing(t, err, "blobs/"+large.String())

	b3 := digest.Of(digest.BLAKE3, []byte("gone"))
	_, err = w.execute(t.Context(), &repb.ExecuteRequest{ActionDigest: wire(b3), DigestFunction: repb.DigestFunction_BLAKE3})
	wantMissing(t, err, fmt.Sprintf("blobs/blake3/%s/4", b3.Hash()))

	w.store.Fail(blob.ErrUnavailable)
	_, err = w.execute(t.Context(), &repb.ExecuteRequest{ActionDigest: wire(gone)})
	wantCode(t, err, codes.Unavailable)
	if len(status.Convert(err).Details()) > 0 {
		t.Error("what cannot be told has details", err)
	}
}

func TestExecuteRefuses(t *testing.T) {
	w := start(t)
	good := wire(sha("x"))
	for name, c := range map[string]struct {
		field  string
		change func(*repb.Action, *repb.Command)
	}{
		"absolute output":     {"command.output_paths[0]", func(_ *repb.Action, c *repb.Command) { c.OutputPaths = []string{"/etc/passwd"} }},
		"output that escapes": {"command.output_paths[1]", func(_ *repb.Action, c *repb.Command) { c.OutputPaths = []string{"a", "b/../../c"} }},
		"output with NUL":     {"command.output_files[0]", func(_ *repb.Action, c *repb.Command) { c.OutputFiles = []string{"a\x00"} }},
		"directory escapes":   {"command.output_directories[0]", func(_ *repb.Action, c *repb.Command) { c.OutputDirectories = []string{".."} }},
		"directory of work":   {"command.working_directory", func(_ *repb.Action, c *repb.Command) { c.WorkingDirectory = "../x" }},
		"work at /":           {"command.working_directory", func(_ *repb.Action, c *repb.Command) { c.WorkingDirectory = "/" }},
		"work at NUL":         {"command.working_directory", func(_ *repb.Action, c *repb.Command) { c.WorkingDirectory = "a\x00b" }},
		"no program":          {"command.arguments", func(_ *repb.Action, c *repb.Command) { c.Arguments = nil }},
		"empty program":       {"command.arguments", func(_ *repb.Action, c *repb.Command) { c.Arguments = []string{""} }},
		"argument with NUL":   {"command.arguments[1]", func(_ *repb.Action, c *repb.Command) { c.Arguments = []string{"a", "\x00"} }},
		"variable": {"command.environment_variables[0]", func(_ *repb.Action, c *repb.Command) {
			c.EnvironmentVariables = []*repb.Command_EnvironmentVariable{{Name: "A=B"}}
		}},
		"node property":      {"command.output_node_properties[0]", func(_ *repb.Action, c *repb.Command) { c.OutputNodeProperties = []string{"colour"} }},
		"timeout above":      {"action.timeout", func(a *repb.Action, _ *repb.Command) { a.Timeout = durationpb.New(time.Hour + 1) }},
		"timeout below zero": {"action.timeout", func(a *repb.Action, _ *repb.Command) { a.Timeout = durationpb.New(-1) }},
		"timeout malformed":  {"action.timeout", func(a *repb.Action, _ *repb.Command) { a.Timeout = &durationpb.Duration{Seconds: 1, Nanos: -1} }},
		"no root":            {"action.input_root_digest", func(a *repb.Action, _ *repb.Command) { a.InputRootDigest = nil }},
		"bad root":           {"action.input_root_digest", func(a *repb.Action, _ *repb.Command) { a.InputRootDigest = &repb.Digest{Hash: "x"} }},
		"bad command digest": {"action.command_digest", func(a *repb.Action, _ *repb.Command) { a.CommandDigest = &repb.Digest{} }},
		"no command":         {"action.command_digest", func(a *repb.Action, _ *repb.Command) { a.CommandDigest = wire(w.store.Add([]byte("\xff\xff"))) }},
		"huge command": {"action.command_digest", func(a *repb.Action, _ *repb.Command) {
			a.CommandDigest = &repb.Digest{Hash: good.Hash, SizeBytes: 9 << 20}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := w.execute(t.Context(), &repb.ExecuteRequest{ActionDigest: w.action(t, c.change)})
			wantInvalid(t, err, c.field)
		})
	}
	for name, c := range map[string]struct {
		field string
		req   *repb.ExecuteRequest
	}{
		"no digest":   {"action_digest", &repb.ExecuteRequest{}},
		"no action":   {"action_digest", &repb.ExecuteRequest{ActionDigest: wire(w.store.Add([]byte("\xff\xff")))}},
		"huge action": {"action_digest", &repb.ExecuteRequest{ActionDigest: &repb.Digest{Hash: good.Hash, SizeBytes: 2 << 20}}},
		"function":    {"digest_function", &repb.ExecuteRequest{ActionDigest: good, DigestFunction: repb.DigestFunction_VSO}},
		"instance":    {"instance_name", &repb.ExecuteRequest{ActionDigest: good, InstanceName: "a//b"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := w.execute(t.Context(), c.req)
			wantInvalid(t, err, c.field)
		})
	}
	if len(w.executor.Requests()) != 0 {
		t.Error("executed what was refused")
	}
}

// coded is an error of another package with its code.
type coded struct{ code codes.Code }

func (e coded) Error() string    { return "because" }
func (e coded) Code() codes.Code { return e.code }

func TestHowOperationsEnd(t *testing.T) {
	w := start(t)
	withStatus := func(c codes.Code, r *repb.ActionResult) frontend.Update {
		return frontend.Update{Response: marshal(t, &repb.ExecuteResponse{Status: &spb.Status{Code: int32(c), Message: "because"}, Result: r})}
	}
	out := &repb.ActionResult{StdoutRaw: []byte("so far"), ExitCode: 1}
	for name, c := range map[string]struct {
		u      frontend.Update
		code   codes.Code
		result bool
	}{
		"lost workers":               {frontend.Update{Err: coded{codes.FailedPrecondition}}, codes.FailedPrecondition, false},
		"no worker to be had":        {frontend.Update{Err: fmt.Errorf("run: %w", coded{codes.Unavailable})}, codes.Unavailable, false},
		"cancelled":                  {frontend.Update{Err: coded{codes.Canceled}}, codes.Canceled, false},
		"not found, said by us":      {frontend.Update{Err: blob.ErrNotFound}, codes.Internal, false},
		"late, said by us":           {frontend.Update{Err: context.DeadlineExceeded}, codes.Internal, false},
		"no code":                    {frontend.Update{Err: io.ErrUnexpectedEOF}, codes.Internal, false},
		"timeout of the action":      {withStatus(codes.DeadlineExceeded, out), codes.DeadlineExceeded, true},
		"not found, said by worker":  {withStatus(codes.NotFound, nil), codes.Internal, false},
		"refused by worker":          {withStatus(codes.InvalidArgument, nil), codes.InvalidArgument, false},
		"OK without a result":        {withStatus(codes.OK, nil), codes.Internal, false},
		"nothing at all":             {frontend.Update{}, codes.Internal, false},
		"no response":                {frontend.Update{Response: []byte("\xff\xff")}, codes.Internal, false},
		"OK with the action's error": {withStatus(codes.OK, out), codes.OK, true},
	} {
		t.Run(name, func(t *testing.T) {
			w.executor.Script = finishing(c.u)
			ops, err := w.execute(t.Context(), &repb.ExecuteRequest{ActionDigest: w.action(t, nil)})
			if err != nil {
				t.Fatal(err)
			}
			r := response(t, ops[0])
			if got := codes.Code(r.Status.GetCode()); got != c.code || (r.Result != nil) != c.result {
				t.Errorf("%v", r)
			}
			if c.result && string(r.Result.StdoutRaw) != "so far" {
				t.Error("what exists nowhere else was dropped")
			}
		})
	}
	t.Run("not at all", func(t *testing.T) {
		for _, code := range []codes.Code{codes.ResourceExhausted, codes.Unavailable, codes.FailedPrecondition} {
			w.executor.Script = func(context.Context, frontend.Request, func(frontend.Update) error) error { return coded{code} }
			_, err := w.execute(t.Context(), &repb.ExecuteRequest{ActionDigest: w.action(t, nil)})
			wantCode(t, err, code)
		}
	})
	t.Run("in a panic", func(t *testing.T) {
		w.executor.Script = func(context.Context, frontend.Request, func(frontend.Update) error) error { panic("bug") }
		_, err := w.execute(t.Context(), &repb.ExecuteRequest{ActionDigest: w.action(t, nil)})
		wantCode(t, err, codes.Internal)
	})
}

func TestResponsesFitIntoMessages(t *testing.T) {
	w := start(t)
	large := bytes.Repeat([]byte("x"), 3<<20)
	file := w.store.Add(large)
	w.executor.Script = finishing(frontend.Update{Response: marshal(t, &repb.ExecuteResponse{Result: &repb.ActionResult{
		StdoutRaw: large, StdoutDigest: wire(file), StderrDigest: wire(file),
		OutputFiles: []*repb.OutputFile{{Path: "f", Digest: wire(file), Contents: large}},
	}})})
	for name, c := range map[string]struct {
		req  *repb.ExecuteRequest
		want [3]int
	}{
		"nothing asked": {&repb.ExecuteRequest{}, [3]int{}},
		"one asked":     {&repb.ExecuteRequest{InlineStderr: true}, [3]int{0, 3 << 20, 0}},
		"the other":     {&repb.ExecuteRequest{InlineOutputFiles: []string{"f"}}, [3]int{0, 0, 3 << 20}},
		"all asked":     {&repb.ExecuteRequest{InlineStdout: true, InlineStderr: true, InlineOutputFiles: []string{"f"}}, [3]int{3 << 20, 0, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			req := proto.CloneOf(c.req)
			req.ActionDigest = w.action(t, nil)
			ops, err := w.execute(t.Context(), req)
			if err != nil {
				t.Fatal(err)
			}
			r := response(t, ops[0]).Result
			if got := [3]int{len(r.StdoutRaw), len(r.StderrRaw), len(r.OutputFiles[0].Contents)}; got != c.want {
				t.Errorf("inlined %v, want %v", got, c.want)
			}
		})
	}
	t.Run("too many outputs", func(t *testing.T) {
		r := &repb.ActionResult{}
		for i := range 5_000 {
			r.OutputFiles = append(r.OutputFiles, &repb.OutputFile{Path: fmt.Sprintf("%01000d", i), Digest: wire(file)})
		}
		w.executor.Script = finishing(frontend.Update{Response: marshal(t, &repb.ExecuteResponse{Result: r})})
		ops, err := w.execute(t.Context(), &repb.ExecuteRequest{ActionDigest: w.action(t, nil)})
		if err != nil || response(t, ops[0]).Status.GetCode() != int32(codes.FailedPrecondition) {
			t.Error(err)
		}
	})
}

// An action's request says which workers have its inputs, once another one has
// run with them, though nobody uploaded their directories through this frontend.
func TestRequestsSayWhoHasTheInputs(t *testing.T) {
	w := start(t)
	sdk := wire(sha("sdk"))
	sdk.SizeBytes = 300 << 20
	lib := w.add(t, &repb.Directory{Files: []*repb.FileNode{{Name: "sdk", Digest: sdk}}})
	root := w.add(t, &repb.Directory{Directories: []*repb.DirectoryNode{{Name: "lib", Digest: lib}}})
	result := marshal(t, &repb.ExecuteResponse{Result: &repb.ActionResult{}})
	w.executor.Script = func(_ context.Context, r frontend.Request, send func(frontend.Update) error) error {
		time.Sleep(5 * time.Millisecond) // as long as an action takes
		return send(frontend.Update{Name: "op", Action: r.Action, Worker: "worker", Done: true, Response: result})
	}
	for i := range byte(100) {
		_, err := w.execute(t.Context(), &repb.ExecuteRequest{ActionDigest: w.action(t, func(a *repb.Action, _ *repb.Command) {
			a.Salt, a.InputRootDigest = []byte{i}, root
		})})
		if err != nil {
			t.Fatal(err)
		}
		if near := w.executor.Requests()[i].Near; len(near) > 0 {
			if len(near) != 1 || near[0].Worker != "worker" || near[0].Bytes != sdk.SizeBytes {
				t.Errorf("near are %v", near)
			}
			return
		}
	}
	t.Error("nobody is near after a hundred actions with the same inputs")
}

func TestWaitExecution(t *testing.T) {
	w := start(t)
	_, err := follow(w.exec().WaitExecution(t.Context(), &repb.WaitExecutionRequest{Name: "unknown"}))
	wantCode(t, err, codes.NotFound)
	_, err = follow(w.exec().WaitExecution(t.Context(), &repb.WaitExecutionRequest{}))
	wantInvalid(t, err, "name")

	out := w.store.Add([]byte("out"))
	w.executor.Know(frontend.Update{Name: "op", Action: sha("a"), Done: true, Response: marshal(t, &repb.ExecuteResponse{
		Result: &repb.ActionResult{StdoutRaw: []byte("out"), StdoutDigest: wire(out)},
	})})
	ops, err := follow(w.exec().WaitExecution(t.Context(), &repb.WaitExecutionRequest{Name: "op"}))
	if err != nil || string(response(t, ops[0]).Result.StdoutRaw) != "out" {
		t.Error(ops, err)
	}
}

func TestAClientThatVanishesDetaches(t *testing.T) {
	w := start(t)
	left := make(chan error, 1)
	w.executor.Script = func(ctx context.Context, r frontend.Request, send func(frontend.Update) error) error {
		err := send(frontend.Update{Name: "op", Action: r.Action, Stage: 2})
		<-ctx.Done()
		left <- ctx.Err()
		return errors.Join(err, ctx.Err())
	}
	ctx, cancel := context.WithCancel(t.Context())
	s, err := w.exec().Execute(ctx, &repb.ExecuteRequest{ActionDigest: w.action(t, nil)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if len(w.executor.Cancelled()) > 0 {
		t.Error("a reset stream cancelled the operation")
	}
}

// Answers that wait to be sent hold a part of the budget: nothing that they wait
// for may need more of it.
func TestCachedExecutionsDoNotWaitForEachOther(t *testing.T) {
	for name, stdout := range map[string][]byte{"small results": nil, "large results": random(100 << 10)} {
		t.Run(name, func(t *testing.T) { cachedExecutions(t, stdout) })
	}
}

func cachedExecutions(t *testing.T, stdout []byte) {
	w := start(t)
	out := w.store.Add(random(1 << 20))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var g errgroup.Group
	for i := range 24 { // several times a connection's share
		d := w.action(t, func(a *repb.Action, _ *repb.Command) { a.Salt = []byte{byte(i)} })
		action, err := digest.Parse(digest.SHA256, d.Hash, d.SizeBytes)
		if err != nil {
			t.Fatal(err)
		}
		w.plant(t, action, &repb.ActionResult{StdoutRaw: stdout, OutputFiles: []*repb.OutputFile{{Path: "out", Digest: wire(out)}}})
		g.Go(func() error {
			ops, err := w.execute(ctx, &repb.ExecuteRequest{InstanceName: "i", ActionDigest: d, InlineOutputFiles: []string{"out"}})
			if err == nil && len(ops) != 1 {
				err = fmt.Errorf("%d operations", len(ops))
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	w.fill(t)
}
