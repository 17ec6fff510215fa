package frontend_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"cloud.google.com/go/longrunning/autogen/longrunningpb"
	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/remex-build/terraform-provider-remex/daemon/frontend"
)

func TestOperations(t *testing.T) {
	w := start(t)
	done := marshal(t, &repb.ExecuteResponse{Result: &repb.ActionResult{ExitCode: 1}})
	w.executor.Know(frontend.Update{Name: "running", Action: sha("a"), Stage: 3})
	w.executor.Know(frontend.Update{Name: "done", Action: sha("b"), Done: true, Response: done})

	op, err := w.operations().GetOperation(t.Context(), &longrunningpb.GetOperationRequest{Name: "running"})
	if err != nil || op.Done || stage(t, op).Stage != repb.ExecutionStage_EXECUTING {
		t.Error(op, err)
	}
	op, err = w.operations().GetOperation(t.Context(), &longrunningpb.GetOperationRequest{Name: "done"})
	if err != nil || response(t, op).Result.ExitCode != 1 {
		t.Error(op, err)
	}
	op, err = w.operations().WaitOperation(t.Context(), &longrunningpb.WaitOperationRequest{Name: "done"})
	if err != nil || !op.Done {
		t.Error(op, err)
	}
	op, err = w.operations().WaitOperation(t.Context(), &longrunningpb.WaitOperationRequest{
		Name: "running", Timeout: durationpb.New(time.Millisecond),
	})
	if err != nil || op.Done || op.Name != "running" {
		t.Error(op, err)
	}
	if _, err := w.operations().CancelOperation(t.Context(), &longrunningpb.CancelOperationRequest{Name: "running"}); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{"running"}, w.executor.Cancelled()); diff != "" {
		t.Error(diff)
	}

	_, err = w.operations().DeleteOperation(t.Context(), &longrunningpb.DeleteOperationRequest{Name: "done"})
	wantCode(t, err, codes.Unimplemented)
	_, err = w.operations().GetOperation(t.Context(), &longrunningpb.GetOperationRequest{Name: "unknown"})
	wantCode(t, err, codes.NotFound)
	_, err = w.operations().CancelOperation(t.Context(), &longrunningpb.CancelOperationRequest{Name: "unknown"})
	wantCode(t, err, codes.NotFound)
	_, err = w.operations().WaitOperation(t.Context(), &longrunningpb.WaitOperationRequest{Name: "unknown"})
	wantCode(t, err, codes.NotFound)
	_, err = w.operations().GetOperation(t.Context(), &longrunningpb.GetOperationRequest{})
	wantInvalid(t, err, "name")
	_, err = w.operations().CancelOperation(t.Context(), &longrunningpb.CancelOperationRequest{})
	wantInvalid(t, err, "name")
	_, err = w.operations().WaitOperation(t.Context(), &longrunningpb.WaitOperationRequest{})
	wantInvalid(t, err, "name")
	_, err = w.operations().WaitOperation(t.Context(), &longrunningpb.WaitOperationRequest{
		Name: "done", Timeout: &durationpb.Duration{Seconds: 1, Nanos: -1},
	})
	wantInvalid(t, err, "timeout")
}

func TestListOperations(t *testing.T) {
	w := start(t)
	for i := range 5 {
		w.executor.Know(frontend.Update{
			Name: fmt.Sprint(i), Action: sha("a"), Done: i%2 == 0, Response: marshal(t, &repb.ExecuteResponse{Result: &repb.ActionResult{}}),
		})
	}
	list := func(req *longrunningpb.ListOperationsRequest) string {
		t.Helper()
		var all []string
		for {
			resp, err := w.operations().ListOperations(t.Context(), req)
			if err != nil {
				t.Fatal(err)
			}
			var page []string
			for _, op := range resp.Operations {
				page = append(page, op.Name)
			}
			all = append(all, strings.Join(page, ","))
			if req.PageToken = resp.NextPageToken; req.PageToken == "" {
				return strings.Join(all, " ")
			}
		}
	}
	for want, req := range map[string]*longrunningpb.ListOperationsRequest{
		"0,1,2,3,4": {},
		"0,2,4":     {Filter: "done=true"},
		"1,3":       {Filter: "done = false"},
		"0,1 2,3 4": {PageSize: 2},
		"0,2 4":     {PageSize: 2, Filter: "done=true"},
	} {
		if got := list(req); got != want {
			t.Errorf("%v: %s, want %s", req, got, want)
		}
	}
	_, err := w.operations().ListOperations(t.Context(), &longrunningpb.ListOperationsRequest{Filter: "worker=x"})
	wantInvalid(t, err, "filter")
	_, err = w.operations().ListOperations(t.Context(), &longrunningpb.ListOperationsRequest{PageSize: -1})
	wantInvalid(t, err, "page_size")
}

func TestHealth(t *testing.T) {
	w := start(t)
	for _, ready := range []bool{false, true, false} {
		w.front.SetServing(ready)
		for _, service := range []string{"", "build.bazel.remote.execution.v2.Execution", "google.bytestream.ByteStream"} {
			r, err := healthpb.NewHealthClient(w.conn).Check(t.Context(), &healthpb.HealthCheckRequest{Service: service})
			if err != nil || (r.Status == healthpb.HealthCheckResponse_SERVING) != ready {
				t.Error(service, r, err)
			}
		}
	}
}

func TestReflectionNamesEveryService(t *testing.T) {
	w := start(t)
	s, err := reflectionpb.NewServerReflectionClient(w.conn).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ask := func(req *reflectionpb.ServerReflectionRequest) *reflectionpb.ServerReflectionResponse {
		t.Helper()
		if err := s.Send(req); err != nil {
			t.Fatal(err)
		}
		resp, err := s.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	resp := ask(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}})
	for _, service := range resp.GetListServicesResponse().GetService() {
		f := ask(&reflectionpb.ServerReflectionRequest{
			MessageRequest: &reflectionpb.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: service.Name},
		})
		if len(f.GetFileDescriptorResponse().GetFileDescriptorProto()) == 0 {
			t.Errorf("%s cannot be described: %v", service.Name, f)
		}
	}
	if n := len(resp.GetListServicesResponse().GetService()); n < 8 {
		t.Errorf("%d services", n)
	}
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); err == nil {
		t.Error("the stream goes on")
	}
}

func TestMetricsCountCallsByMethodAndCode(t *testing.T) {
	w := start(t)
	_, err := w.cas().SplitBlob(t.Context(), &repb.SplitBlobRequest{})
	wantCode(t, err, codes.Unimplemented)
	_, err = w.execute(t.Context(), &repb.ExecuteRequest{})
	wantInvalid(t, err, "action_digest")
	families, err := w.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		if f.GetName() != "remex_frontend_requests_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			got[m.GetLabel()[1].GetValue()+" "+m.GetLabel()[0].GetValue()] = m.GetCounter().GetValue()
		}
	}
	want := map[string]float64{"Execution/Execute InvalidArgument": 1, "ContentAddressableStorage/SplitBlob Unimplemented": 1}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
