package action

import (
	"errors"
	"fmt"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/sandbox"
)

// userError is something that the action's author has to mend.
type userError struct {
	code codes.Code
	text string
}

func (e *userError) Error() string { return e.text }

func invalid(format string, args ...any) error {
	return &userError{codes.InvalidArgument, fmt.Sprintf(format, args...)}
}

// statusOf is the status by which a client learns of err, or nil if err is
// this node's trouble and none of the client's.
func statusOf(err error) *status.Status {
	var (
		user    *userError
		missing *missingError
		input   *sandbox.InputError
		command *sandbox.CommandError
		output  *sandbox.OutputError
		budget  *sandbox.BudgetError
	)
	switch {
	case errors.As(err, &missing):
		return missingStatus(missing)
	case errors.As(err, &user):
		return &status.Status{Code: int32(user.code), Message: user.text}
	case errors.As(err, &input), errors.As(err, &command):
		return &status.Status{Code: int32(codes.InvalidArgument), Message: err.Error()}
	case errors.As(err, &output):
		return &status.Status{Code: int32(codes.FailedPrecondition), Message: output.Text}
	case errors.As(err, &budget):
		return &status.Status{Code: int32(codes.ResourceExhausted), Message: budget.Text}
	case errors.Is(err, blob.ErrFull):
		return &status.Status{Code: int32(codes.ResourceExhausted), Message: err.Error()}
	}
	return nil
}

// maxViolations keeps the list of missing blobs within a message. What is left
// out the client learns at its next try.
const maxViolations = 20000

// missingStatus lists missing blobs the way that makes clients upload them:
// with no other detail beside the list, else Bazel stops retrying.
func missingStatus(e *missingError) *status.Status {
	ds := e.unique()
	st := &status.Status{Code: int32(codes.FailedPrecondition), Message: e.Error()}
	var f errdetails.PreconditionFailure
	for _, d := range ds[:min(len(ds), maxViolations)] {
		f.Violations = append(f.Violations, &errdetails.PreconditionFailure_Violation{Type: "MISSING", Subject: "blobs/" + d.String()})
	}
	if detail, err := anypb.New(&f); err == nil {
		st.Details = []*anypb.Any{detail}
	}
	return st
}

// refuse makes the response for an action that has no result, or gives the
// error back if it is trouble of this node's.
func (a *Actions) refuse(err error) ([]byte, error) {
	st := statusOf(err)
	if st == nil {
		a.metrics.actions.WithLabelValues(endTrouble).Inc()
		return nil, err
	}
	a.metrics.actions.WithLabelValues(endRefused).Inc()
	return proto.Marshal(&repb.ExecuteResponse{Status: st})
}
