package frontend

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"cloud.google.com/go/longrunning/autogen/longrunningpb"
	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/remex-build/terraform-provider-remex/daemon/actioncache"
	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

// What an action's messages may have, in bytes. Commands of generated code
// have arguments of hundreds of KiB.
const (
	maxAction  = 1 << 20
	maxCommand = 8 << 20
)

// cacheTimeout is how long an Execute waits for the action cache: a client
// wants to hear of its operation.
const cacheTimeout = 5 * time.Second

// metadataHeader carries a RequestMetadata, of which maxMetadata is kept.
const (
	metadataHeader = "build.bazel.remote.execution.v2.requestmetadata-bin"
	maxMetadata    = 16 << 10
)

type execution struct {
	repb.UnimplementedExecutionServer
	*Frontend
}

// Execute reports what it finds wrong before there is an operation as the
// status of the stream, and everything after that in ExecuteResponse.status.
func (s execution) Execute(req *repb.ExecuteRequest, stream grpc.ServerStreamingServer[longrunningpb.Operation]) error {
	ctx := stream.Context()
	if err := checkInstance(req.InstanceName); err != nil {
		return err
	}
	dec, err := newDecoder(req.DigestFunction)
	if err != nil {
		return err
	}
	action, err := dec.digest(req.ActionDigest, "action_digest")
	if err != nil {
		return err
	}
	h := &hints{stdout: req.InlineStdout, stderr: req.InlineStderr, files: req.InlineOutputFiles}
	k := actioncache.Key{Instance: req.InstanceName, Action: action}

	// The cache is asked while the action is read: what is executed is mostly
	// new, and each takes a question to another node.
	var hit *repb.ActionResult
	var large bool
	var wg sync.WaitGroup
	if !req.SkipCacheLookup {
		wg.Go(func() { hit, large = s.cached(ctx, nil, k) })
	}
	r, root, err := s.request(ctx, dec, action)
	wg.Wait()
	// Only now: the request needed a part of the budget, too.
	room := s.answer(ctx)
	defer room.drop()
	if large && room.takeWithin(cacheTimeout, answerRoom) == nil {
		hit, _ = s.cached(ctx, room, k)
	}
	if hit != nil {
		s.inline(ctx, room, action.Function(), hit, *h, maxMessage-margin)
		return stream.SendMsg(room.around(cachedOperation(action, hit)))
	}
	room.drop()
	if err != nil {
		return err
	}
	r.Instance = req.InstanceName
	r.Priority = req.ExecutionPolicy.GetPriority()
	r.Metadata, r.Invocation = requestMetadata(ctx)
	parts, unknown := s.locate(&r, root)
	if len(unknown) > 0 {
		learning, cancel := context.WithCancel(ctx)
		wg.Go(func() { s.learn(learning, root, unknown) })
		defer wg.Wait()
		defer cancel()
	}
	return s.executor.Execute(ctx, r, func(u Update) error {
		if u.Done && u.Err == nil {
			s.near.Used(u.Worker, parts)
		}
		return s.tell(stream, u, h)
	})
}

// tell sends how an operation stands.
func (s execution) tell(stream grpc.ServerStream, u Update, h *hints) error {
	room := s.answer(stream.Context())
	defer room.drop() // unless the answer has taken it along
	op, err := s.operation(room.ctx, room, u, h)
	if err != nil {
		return err
	}
	return stream.SendMsg(room.around(op))
}

// cached is the action's result if the cache has it and can tell so in time; an
// execution is always a right answer. Without room it leaves out what is large.
func (s execution) cached(ctx context.Context, room *held, k actioncache.Key) (r *repb.ActionResult, large bool) {
	asking, cancel := context.WithTimeout(ctx, cacheTimeout)
	defer cancel()
	err := s.protect(ctx, "cache lookup", func() (err error) {
		r, err = s.lookup(asking, room, k)
		return err
	})
	switch {
	case err == nil:
		return r, false
	case errors.Is(err, errLarge):
		return nil, true
	case !blob.IsNotFound(err) && ctx.Err() == nil:
		s.log.WarnContext(ctx, "the action cache could not be asked; executing", "action", k.Action, "err", err)
	}
	return nil, false
}

// WaitExecution has no hints: what the worker inlined stays, if it fits.
func (s execution) WaitExecution(req *repb.WaitExecutionRequest, stream grpc.ServerStreamingServer[longrunningpb.Operation]) error {
	ctx := stream.Context()
	if req.Name == "" {
		return invalid("name", "is not set")
	}
	return s.executor.Wait(ctx, req.Name, func(u Update) error {
		return s.tell(stream, u, nil)
	})
}

// request reads what there is to know about the action, and checks it. root is
// that of its inputs.
func (s execution) request(ctx context.Context, dec *decoder, action digest.Digest) (r Request, root digest.Digest, err error) {
	r.Action = action
	if action.Size() > maxAction {
		return r, root, invalid("action_digest", "%d bytes are more than an Action may have", action.Size())
	}
	res := s.readOne(ctx, action)
	if blob.IsNotFound(res.Err) {
		return r, root, missingBlobs([]digest.Digest{action})
	}
	if res.Err != nil {
		return r, root, fmt.Errorf("read action %s: %w", action, res.Err)
	}
	a := &repb.Action{}
	if err := proto.Unmarshal(res.Data, a); err != nil {
		return r, root, invalid("action_digest", "%s is no Action: %s", action, clip(err.Error()))
	}
	r.ActionBlob, r.DoNotCache = res.Data, a.DoNotCache
	if r.Timeout, err = s.checkTimeout(a); err != nil {
		return r, root, err
	}
	command, err := dec.digest(a.CommandDigest, "action.command_digest")
	if err != nil {
		return r, root, err
	}
	root, err = dec.digest(a.InputRootDigest, "action.input_root_digest")
	if err != nil {
		return r, root, err
	}
	if command.Size() > maxCommand {
		return r, root, invalid("action.command_digest", "%d bytes are more than a Command may have", command.Size())
	}
	if r.CommandBlob, r.RootBlob, err = s.inputs(ctx, command, root); err != nil {
		return r, root, err
	}
	c := &repb.Command{}
	if err := proto.Unmarshal(r.CommandBlob, c); err != nil {
		return r, root, invalid("action.command_digest", "%s is no Command: %s", command, clip(err.Error()))
	}
	if err := checkCommand(c); err != nil {
		return r, root, err
	}
	r.Platform, r.FirstOutput = platform(a, c), firstOutput(c)
	return r, root, nil
}

// readOne reads a blob of a size that has been checked.
func (s execution) readOne(ctx context.Context, d digest.Digest) blob.Result {
	release, err := s.hold(ctx, d.Size())
	if err != nil {
		return blob.Result{Err: err}
	}
	defer release()
	return s.readRecent(ctx, []digest.Digest{d})[0]
}

// inputs reads the command and, if it is small enough to travel with the offer
// to a worker, the root directory. Both are looked for before either is called
// missing, so that the client uploads them in one go.
func (s execution) inputs(ctx context.Context, command, root digest.Digest) (commandBlob, rootBlob []byte, err error) {
	large := root.Size() > blob.SmallSize
	ds := []digest.Digest{command}
	if !large {
		ds = append(ds, root)
	}
	release, err := s.hold(ctx, command.Size()+min(root.Size(), blob.SmallSize))
	if err != nil {
		return nil, nil, err
	}
	defer release()
	results := s.readRecent(ctx, ds)
	var missing []digest.Digest
	for i, r := range results {
		if blob.IsNotFound(r.Err) {
			missing = append(missing, ds[i])
		} else if r.Err != nil {
			return nil, nil, fmt.Errorf("read input %s of an action: %w", ds[i], r.Err)
		}
	}
	if large {
		gone, err := s.store.Missing(ctx, []digest.Digest{root})
		if err != nil {
			return nil, nil, fmt.Errorf("find the input root %s of an action: %w", root, err)
		}
		missing = append(missing, gone...)
	} else {
		rootBlob = results[1].Data
	}
	if len(missing) > 0 {
		return nil, nil, missingBlobs(unique(missing))
	}
	return results[0].Data, rootBlob, nil
}

// requestMetadata is the client's RequestMetadata as it came, and the
// invocation in it. What is malformed is nothing.
func requestMetadata(ctx context.Context) (raw []byte, invocation string) {
	v := metadata.ValueFromIncomingContext(ctx, metadataHeader)
	if len(v) == 0 || len(v[0]) > maxMetadata {
		return nil, ""
	}
	m := &repb.RequestMetadata{}
	if proto.Unmarshal([]byte(v[0]), m) != nil {
		return nil, ""
	}
	return []byte(v[0]), m.ToolInvocationId
}

// cachedOperation is done from the start; nobody will ask for its name again.
func cachedOperation(action digest.Digest, r *repb.ActionResult) *longrunningpb.Operation {
	op := &longrunningpb.Operation{
		Name: "cached/" + uuid.NewString(),
		Metadata: toAny(&repb.ExecuteOperationMetadata{
			Stage:        repb.ExecutionStage_COMPLETED,
			ActionDigest: digestProto(action), DigestFunction: functionProto(action),
		}),
	}
	finish(op, &repb.ExecuteResponse{Result: r, CachedResult: true})
	return op
}
