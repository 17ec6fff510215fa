package frontend

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"cloud.google.com/go/longrunning/autogen/longrunningpb"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
)

// maxPage is how many operations one answer lists at most.
const maxPage = 500

type operations struct {
	longrunningpb.UnimplementedOperationsServer
	*Frontend
}

func (s operations) GetOperation(ctx context.Context, req *longrunningpb.GetOperationRequest) (*longrunningpb.Operation, error) {
	if req.Name == "" {
		return nil, invalid("name", "is not set")
	}
	u, err := s.executor.Operation(ctx, req.Name)
	if err != nil {
		return nil, err
	}
	return s.operation(ctx, s.held(ctx), u, nil)
}

func (s operations) CancelOperation(ctx context.Context, req *longrunningpb.CancelOperationRequest) (*emptypb.Empty, error) {
	if req.Name == "" {
		return nil, invalid("name", "is not set")
	}
	if err := s.executor.Cancel(ctx, req.Name); err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}

// WaitOperation answers once the operation is done, or with how far it has come
// when the time that the client gave it is over.
func (s operations) WaitOperation(ctx context.Context, req *longrunningpb.WaitOperationRequest) (*longrunningpb.Operation, error) {
	if req.Name == "" {
		return nil, invalid("name", "is not set")
	}
	waiting := ctx
	if req.Timeout != nil {
		if err := req.Timeout.CheckValid(); err != nil {
			return nil, invalid("timeout", "%s", clip(err.Error()))
		}
		var cancel context.CancelFunc
		waiting, cancel = context.WithTimeout(ctx, req.Timeout.AsDuration())
		defer cancel()
	}
	var last Update
	err := s.executor.Wait(waiting, req.Name, func(u Update) error {
		last = u
		return nil
	})
	switch {
	case last.Done || err == nil && last.Name != "":
		return s.operation(ctx, s.held(ctx), last, nil)
	case err != nil && (waiting.Err() == nil || ctx.Err() != nil):
		return nil, err
	}
	// The client's time is over.
	return s.GetOperation(ctx, &longrunningpb.GetOperationRequest{Name: req.Name})
}

// ListOperations lists all, in the order of names, which is no order of time. A
// filter is "done=true" or "done=false".
func (s operations) ListOperations(ctx context.Context, req *longrunningpb.ListOperationsRequest) (*longrunningpb.ListOperationsResponse, error) {
	if req.PageSize < 0 {
		return nil, invalid("page_size", "%d is negative", req.PageSize)
	}
	var done, either bool
	switch strings.ReplaceAll(req.Filter, " ", "") {
	case "":
		either = true
	case "done=true":
		done = true
	case "done=false":
	default:
		return nil, invalid("filter", "%s is neither done=true nor done=false", quote(req.Filter))
	}
	all, err := s.executor.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list operations: %w", err)
	}
	slices.SortFunc(all, func(a, b Update) int { return strings.Compare(a.Name, b.Name) })
	limit := maxPage
	if req.PageSize > 0 {
		limit = min(limit, int(req.PageSize))
	}
	resp := &longrunningpb.ListOperationsResponse{}
	size := 0
	for _, u := range all {
		if u.Name <= req.PageToken || !either && u.Done != done {
			continue
		}
		op, err := s.operation(ctx, nil, u, &hints{})
		if err != nil {
			return nil, err
		}
		n := proto.Size(op) + 8
		if k := len(resp.Operations); k == limit || k > 0 && size+n > maxMessage-margin {
			resp.NextPageToken = resp.Operations[k-1].Name
			break
		}
		resp.Operations = append(resp.Operations, op)
		size += n
	}
	return resp, nil
}

// DeleteOperation is not supported: finished operations go by themselves, and
// whoever lost interest in a running one cancels it.
func (operations) DeleteOperation(context.Context, *longrunningpb.DeleteOperationRequest) (*emptypb.Empty, error) {
	return nil, unimplemented("DeleteOperation")
}
