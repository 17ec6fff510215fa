package frontend

import (
	"context"
	"time"

	"cloud.google.com/go/longrunning/autogen/longrunningpb"
	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

// operation is u as clients see it. With hints h of nil the response keeps the
// inline data that it has. Its bytes are charged to room, for which it may
// wait until ctx ends, unless that is nil.
func (f *Frontend) operation(ctx context.Context, room *held, u Update, h *hints) (*longrunningpb.Operation, error) {
	meta := &repb.ExecuteOperationMetadata{Stage: repb.ExecutionStage_Value(u.Stage)}
	if u.Done {
		meta.Stage = repb.ExecutionStage_COMPLETED
	}
	if !u.Action.IsZero() {
		meta.ActionDigest, meta.DigestFunction = digestProto(u.Action), functionProto(u.Action)
	}
	if u.Worker != "" || !u.QueuedAt.IsZero() {
		meta.PartialExecutionMetadata = &repb.ExecutedActionMetadata{
			Worker: u.Worker, QueuedTimestamp: timestamp(u.QueuedAt), WorkerStartTimestamp: timestamp(u.StartedAt),
		}
	}
	op := &longrunningpb.Operation{Name: u.Name, Metadata: toAny(meta)}
	if u.Done {
		r, err := f.response(ctx, room, u, h)
		if err != nil {
			return nil, err
		}
		finish(op, r)
	}
	return op, nil
}

// response is what u ended with. Its status is never NOT_FOUND, which clients
// take for a lost operation or a missing image, nor DEADLINE_EXCEEDED unless a
// worker said so of the action; its result is set whenever its status is OK.
func (f *Frontend) response(ctx context.Context, has *held, u Update, h *hints) (*repb.ExecuteResponse, error) {
	if u.Err != nil {
		st := toProto(u.Err)
		if c := codes.Code(st.Code); c == codes.NotFound || c == codes.DeadlineExceeded {
			st.Code = int32(codes.Internal)
		}
		return &repb.ExecuteResponse{Status: st}, nil
	}
	if has != nil && len(u.Response) > largeAnswer {
		if err := has.take(answerRoom); err != nil {
			return nil, err
		}
	}
	r := &repb.ExecuteResponse{}
	if err := proto.Unmarshal(u.Response, r); err != nil {
		return failed(codes.Internal, "the worker's response is malformed"), nil
	}
	if codes.Code(r.Status.GetCode()) == codes.NotFound {
		r.Status.Code = int32(codes.Internal)
	}
	if r.Result == nil {
		if r.Status.GetCode() == int32(codes.OK) {
			return failed(codes.Internal, "the worker's response has no result"), nil
		}
		return r, nil
	}
	f.near.Made(u.Worker, u.Action.Function(), r.Result)
	room := maxMessage - margin - (proto.Size(r) - proto.Size(r.Result))
	if !f.fit(ctx, has, u.Action.Function(), r.Result, h, room) {
		f.log.WarnContext(ctx, "a result is larger than a message", "action", u.Action, "bytes", proto.Size(r))
		if r.Status.GetCode() != int32(codes.OK) {
			r.Result = nil
			return r, nil
		}
		return failed(codes.FailedPrecondition, "the action's result is larger than a message can be; it has too many outputs"), nil
	}
	return r, nil
}

// fit makes r fit into room bytes and carry what h asks for.
func (f *Frontend) fit(ctx context.Context, has *held, fn digest.Function, r *repb.ActionResult, h *hints, room int) bool {
	if h != nil {
		return f.inline(ctx, has, fn, r, *h, room)
	}
	if n := proto.Size(r); n <= room {
		if has != nil && has.n > 0 {
			has.set(int64(n))
		}
		return true
	}
	return f.inline(ctx, has, fn, r, hints{}, room)
}

func failed(code codes.Code, text string) *repb.ExecuteResponse {
	return &repb.ExecuteResponse{Status: &spb.Status{Code: int32(code), Message: text}}
}

func finish(op *longrunningpb.Operation, r *repb.ExecuteResponse) {
	op.Done = true
	op.Result = &longrunningpb.Operation_Response{Response: toAny(r)}
}

// toAny wraps a message of our own making, which always marshals.
func toAny(m proto.Message) *anypb.Any {
	a, err := anypb.New(m)
	if err != nil {
		panic(err)
	}
	return a
}

func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}
