package reapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"cloud.google.com/go/longrunning/autogen/longrunningpb"
	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

// Command is what to run.
type Command struct {
	Args     []string
	Env      map[string]string
	Platform [][2]string // names and values
	Outputs  []string
	WorkDir  string
	Timeout  time.Duration
	NoCache  bool // neither take the result from the cache nor put it there
	Input    digest.Digest
}

// Prepare makes the action of a command, and the blobs to upload for it.
func (c *Client) Prepare(cmd Command) (digest.Digest, []Source, error) {
	platform := &repb.Platform{}
	for _, p := range cmd.Platform {
		platform.Properties = append(platform.Properties, &repb.Platform_Property{Name: p[0], Value: p[1]})
	}
	slices.SortFunc(platform.Properties, func(a, b *repb.Platform_Property) int {
		return strings.Compare(a.Name+"\x00"+a.Value, b.Name+"\x00"+b.Value)
	})
	msg := &repb.Command{
		Arguments: cmd.Args, OutputPaths: slices.Sorted(slices.Values(cmd.Outputs)),
		WorkingDirectory: cmd.WorkDir, Platform: platform,
	}
	for _, k := range slices.Sorted(maps.Keys(cmd.Env)) {
		msg.EnvironmentVariables = append(msg.EnvironmentVariables, &repb.Command_EnvironmentVariable{Name: k, Value: cmd.Env[k]})
	}
	command, err := c.marshal(msg)
	if err != nil {
		return digest.Digest{}, nil, err
	}
	act := &repb.Action{
		CommandDigest: toProto(command.Digest), InputRootDigest: toProto(cmd.Input),
		DoNotCache: cmd.NoCache, Platform: platform,
	}
	if cmd.Timeout > 0 {
		act.Timeout = durationpb.New(cmd.Timeout)
	}
	action, err := c.marshal(act)
	return action.Digest, []Source{command, action}, err
}

// Progress is a step of an operation.
type Progress struct {
	Stage  repb.ExecutionStage_Value
	Worker string
}

// Execute runs an action and waits for its end, through broken connections.
// When ctx ends the operation is cancelled.
func (c *Client) Execute(ctx context.Context, action digest.Digest, noCache bool, tell func(Progress)) (*repb.ExecuteResponse, error) {
	e := &execution{c: c, action: action, noCache: noCache, tell: tell}
	err := retry(ctx, func() (bool, error) { return e.attach(ctx) })
	if err != nil && ctx.Err() != nil && e.name != "" {
		cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if _, cerr := c.ops.CancelOperation(cctx, &longrunningpb.CancelOperationRequest{Name: e.name}); cerr != nil {
			return nil, fmt.Errorf("%w; and it may still run: cancel %s: %w", ctx.Err(), e.name, cerr)
		}
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, Explain(c.target, err)
	}
	return e.response, nil
}

type execution struct {
	c        *Client
	action   digest.Digest
	noCache  bool
	tell     func(Progress)
	name     string
	response *repb.ExecuteResponse
}

// attach begins the operation, or takes it up again, and follows it to its end.
func (e *execution) attach(ctx context.Context) (progress bool, err error) {
	var stream interface {
		Recv() (*longrunningpb.Operation, error)
	}
	if e.name == "" {
		stream, err = e.c.exec.Execute(ctx, &repb.ExecuteRequest{
			InstanceName: e.c.instance, ActionDigest: toProto(e.action), SkipCacheLookup: e.noCache,
			DigestFunction: repb.DigestFunction_Value(e.c.fn),
		})
	} else {
		stream, err = e.c.exec.WaitExecution(ctx, &repb.WaitExecutionRequest{Name: e.name})
	}
	for err == nil {
		var op *longrunningpb.Operation
		if op, err = stream.Recv(); err != nil {
			break
		}
		progress = true
		if done, oerr := e.take(op); done {
			return true, oerr
		}
	}
	switch {
	case errors.Is(err, io.EOF):
		err = status.Error(codes.Unavailable, "the stream ended before the operation did")
	case e.name != "" && status.Code(err) == codes.NotFound:
		// Nobody knows the operation any more: begin anew.
		e.name = ""
		err = status.Error(codes.Unavailable, "the operation is lost")
	}
	return progress, err
}

// take reads one state of the operation, and reports whether it is the last.
func (e *execution) take(op *longrunningpb.Operation) (done bool, err error) {
	e.name = op.Name
	var meta repb.ExecuteOperationMetadata
	if op.Metadata != nil && op.Metadata.UnmarshalTo(&meta) == nil {
		e.tell(Progress{Stage: meta.Stage, Worker: meta.GetPartialExecutionMetadata().GetWorker()})
	}
	if !op.Done {
		return false, nil
	}
	if op.GetError() != nil {
		return true, status.ErrorProto(op.GetError())
	}
	e.response = &repb.ExecuteResponse{}
	return true, op.GetResponse().UnmarshalTo(e.response)
}

// Failure is the error that an ExecuteResponse carries, nil for none.
func Failure(r *repb.ExecuteResponse) error {
	st := status.FromProto(r.GetStatus())
	if st.Code() == codes.OK {
		return nil
	}
	return fmt.Errorf("%s (%s)", text(st), st.Code())
}
