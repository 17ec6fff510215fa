package action

import (
	"context"
	"errors"
	"fmt"
	"time"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/remex-build/terraform-provider-remex/daemon/actioncache"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	"github.com/remex-build/terraform-provider-remex/daemon/sandbox"
)

// conclude stores what the action left, caches the result if it is clean, and
// writes the response.
func (r *run) conclude(ctx context.Context, remains *sandbox.Remains) ([]byte, error) {
	if err := r.untainted(ctx, remains); err != nil {
		return nil, err
	}
	u := newUploads(ctx, r.a.o.Store)
	res, err := r.results(ctx, remains, u)
	if err != nil {
		u.abandon()
		return r.unusable(err, remains)
	}
	if err := u.finish(); err != nil {
		return nil, err
	}
	r.completed = time.Now()
	res.ExecutionMetadata = r.metadata()
	response := &repb.ExecuteResponse{Result: res}
	end := endOK
	switch {
	case r.exit.TimedOut:
		end = endTimeout
		response.Status = &status.Status{Code: int32(codes.DeadlineExceeded), Message: "execution timeout exceeded"}
	case r.exit.Code != 0:
		end = endFailed
	default:
		r.cache(ctx, res, remains)
	}
	r.a.metrics.actions.WithLabelValues(end).Inc()
	r.a.metrics.stages(r)
	// Inline as well as stored: it saves nearly every client a round trip.
	res.StdoutRaw, res.StderrRaw = remains.Stdout.Data, remains.Stderr.Data
	return proto.Marshal(response)
}

// unusable is the response to an action whose outputs cannot be returned: what
// it said may tell why they are what they are.
func (r *run) unusable(err error, remains *sandbox.Remains) ([]byte, error) {
	st := statusOf(err)
	if st == nil {
		return nil, err
	}
	r.a.metrics.actions.WithLabelValues(endRefused).Inc()
	return proto.Marshal(&repb.ExecuteResponse{Status: st, Result: &repb.ActionResult{
		ExitCode: int32(r.exit.Code), StdoutRaw: remains.Stdout.Data, StderrRaw: remains.Stderr.Data,
	}})
}

// cache puts a clean result into the action cache. That it cannot be cached
// makes it no less true.
func (r *run) cache(ctx context.Context, res *repb.ActionResult, remains *sandbox.Remains) {
	if r.t.DoNotCache || r.p.action.GetDoNotCache() || remains.Stdout.Truncated || remains.Stderr.Truncated {
		return
	}
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(res)
	if err == nil {
		err = r.a.o.ActionCache.Put(ctx, actioncache.Key{Instance: r.t.Instance, Action: r.t.Action}, data)
	}
	if err != nil && ctx.Err() == nil {
		r.a.log.Warn("result not cached", "action", r.t.Action.String(), "err", err)
	}
}

// errTainted is the end of an action whose inputs have been changed while it
// ran, perhaps by itself, on a node where actions share the daemon's uid.
var errTainted = errors.New("inputs were changed while the action ran")

// untainted looks whether the inputs are still what they were, where an
// action can change them.
func (r *run) untainted(ctx context.Context, remains *sandbox.Remains) error {
	if r.a.sandbox.OwnUIDs() {
		return nil
	}
	changed, err := remains.Changed(ctx, source{r.a.o.Disk, r.a.o.Store})
	if err != nil || len(changed) == 0 {
		return err
	}
	r.a.metrics.tainted.Inc()
	for _, d := range changed {
		r.a.o.Disk.Suspect(d)
	}
	return fmt.Errorf("%w: %s", errTainted, changed[0])
}

func (r *run) metadata() *repb.ExecutedActionMetadata {
	queued := r.t.QueuedAt
	if queued.IsZero() || queued.After(r.p.began) {
		// Another node's clock: time does not run backwards for clients.
		queued = r.p.began
	}
	// The wall clock may be set while the action runs: what is told is the
	// first reading and the time that passed since.
	at := func(t time.Time) *timestamppb.Timestamp {
		return timestamppb.New(r.p.began.Round(0).Add(max(0, t.Sub(r.p.began))))
	}
	return &repb.ExecutedActionMetadata{
		Worker:                         r.a.o.Worker,
		QueuedTimestamp:                timestamppb.New(queued),
		WorkerStartTimestamp:           at(r.p.began),
		InputFetchStartTimestamp:       at(r.p.began),
		InputFetchCompletedTimestamp:   at(r.fetched),
		ExecutionStartTimestamp:        at(r.exit.Started),
		ExecutionCompletedTimestamp:    at(r.exit.Ended),
		OutputUploadStartTimestamp:     at(r.exit.Ended),
		OutputUploadCompletedTimestamp: at(r.completed),
		WorkerCompletedTimestamp:       at(r.completed),
		VirtualExecutionDuration:       durationpb.New(max(0, r.exit.Ended.Sub(r.exit.Started))),
	}
}

// maxResult keeps a response within what a scheduler receives in one message,
// 16 MiB, whatever the action calls its outputs. Clients are sent 4 MiB.
const maxResult = 12 << 20

// results gathers outputs and streams into an ActionResult.
func (r *run) results(ctx context.Context, remains *sandbox.Remains, u *uploads) (*repb.ActionResult, error) {
	fn := r.t.Action.Function()
	res := &repb.ActionResult{ExitCode: int32(r.exit.Code)}
	g := remains.Gather(fn, u)
	var size int
	for _, w := range r.p.command.outputs {
		o, err := g.Path(ctx, w.at)
		if err == nil {
			err = r.p.command.place(ctx, res, w, o, fn, u)
		}
		if err != nil {
			return nil, err
		}
		if size += w.size(&o, fn); size > maxResult {
			return nil, &userError{codes.FailedPrecondition, "the action's result is larger than a message can be; it has too many outputs"}
		}
	}

	for _, s := range []struct {
		from *sandbox.Stream
		to   **repb.Digest
	}{{&remains.Stdout, &res.StdoutDigest}, {&remains.Stderr, &res.StderrDigest}} {
		if s.from.Size == 0 {
			continue
		}
		d, err := storeStream(ctx, s.from, fn, u)
		if err != nil {
			return nil, err
		}
		*s.to = toProto(d)
	}
	return res, nil
}

func storeStream(ctx context.Context, s *sandbox.Stream, fn digest.Function, u *uploads) (digest.Digest, error) {
	if s.Path == "" {
		d := digest.Of(fn, s.Data)
		return d, u.Small(ctx, d, s.Data)
	}
	d, err := s.Hash(ctx, fn)
	if err != nil {
		return d, err
	}
	return d, u.Large(ctx, d, s.Path)
}

func toProto(d digest.Digest) *repb.Digest {
	return &repb.Digest{Hash: d.Hash(), SizeBytes: d.Size()}
}
