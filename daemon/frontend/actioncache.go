package frontend

import (
	"context"
	"errors"
	"fmt"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/remex-build/terraform-provider-remex/daemon/actioncache"
	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

type actionCache struct {
	repb.UnimplementedActionCacheServer
	*Frontend
}

// actionCacheDesc is the service with room made for each result before it is
// received.
func actionCacheDesc() *grpc.ServiceDesc {
	return withRoom(repb.ActionCache_ServiceDesc, map[string]int64{"UpdateActionResult": maxBatch})
}

func (s actionCache) GetActionResult(ctx context.Context, req *repb.GetActionResultRequest) (*repb.ActionResult, error) {
	if err := checkInstance(req.InstanceName); err != nil {
		return nil, err
	}
	dec, err := newDecoder(req.DigestFunction)
	if err != nil {
		return nil, err
	}
	action, err := dec.digest(req.ActionDigest, "action_digest")
	if err != nil {
		return nil, err
	}
	h := hints{stdout: req.InlineStdout, stderr: req.InlineStderr, files: req.InlineOutputFiles}
	room, k := s.held(ctx), actioncache.Key{Instance: req.InstanceName, Action: action}
	r, err := s.lookup(ctx, room, k)
	if errors.Is(err, errLarge) {
		if err := room.take(answerRoom); err != nil {
			return nil, err
		}
		r, err = s.lookup(ctx, room, k)
	}
	if blob.IsNotFound(err) {
		return nil, status.Errorf(codes.NotFound, "no result of action %s is known", action)
	}
	if err != nil {
		return nil, fmt.Errorf("look for the result of action %s: %w", action, err)
	}
	s.inline(ctx, room, action.Function(), r, h, maxMessage-margin)
	return r, nil
}

// lookup finds a result that is whole and fits into a message. Everything else
// is a miss (blob.ErrNotFound), but for what could not be told. One that is too
// large to lie about uncounted is errLarge, until answerRoom is held for it.
func (f *Frontend) lookup(ctx context.Context, h *held, k actioncache.Key) (*repb.ActionResult, error) {
	r, outcome, err := f.find(ctx, h, k)
	if !errors.Is(err, errLarge) {
		f.metrics.lookups.WithLabelValues(outcome).Inc()
	}
	return r, err
}

var errLarge = errors.New("a large result")

func (f *Frontend) find(ctx context.Context, h *held, k actioncache.Key) (r *repb.ActionResult, outcome string, err error) {
	data, err := f.actions.Get(ctx, k)
	if len(data) > largeAnswer && (h == nil || h.n < answerRoom) {
		return nil, "", errLarge
	}
	if blob.IsNotFound(err) {
		return nil, "miss", err
	}
	if err != nil {
		return nil, "error", err
	}
	r = &repb.ActionResult{}
	if err := proto.Unmarshal(data, r); err != nil {
		f.log.WarnContext(ctx, "an entry of the action cache is no ActionResult", "action", k.Action, "err", err)
		return nil, "miss", blob.ErrNotFound
	}
	whole, err := f.complete(ctx, h, k.Action.Function(), r)
	if err != nil {
		return nil, "error", err
	}
	if !whole {
		return nil, "incomplete", blob.ErrNotFound
	}
	if !f.inline(ctx, nil, k.Action.Function(), r, hints{}, maxMessage-margin) {
		f.log.WarnContext(ctx, "a result is larger than a message and taken for a miss", "action", k.Action, "bytes", proto.Size(r))
		return nil, "oversize", blob.ErrNotFound
	}
	f.near.Made(r.GetExecutionMetadata().GetWorker(), k.Action.Function(), r)
	return r, "hit", nil
}

func (s actionCache) UpdateActionResult(ctx context.Context, req *repb.UpdateActionResultRequest) (*repb.ActionResult, error) {
	if err := checkInstance(req.InstanceName); err != nil {
		return nil, err
	}
	dec, err := newDecoder(req.DigestFunction)
	if err != nil {
		return nil, err
	}
	action, err := dec.digest(req.ActionDigest, "action_digest")
	if err != nil {
		return nil, err
	}
	r := req.ActionResult
	if err := checkResult(dec, r); err != nil {
		return nil, err
	}
	if err := s.outline(ctx, dec.fn, r); err != nil {
		return nil, err
	}
	data, err := proto.Marshal(r)
	if err != nil {
		return nil, invalid("action_result", "%s", clip(err.Error()))
	}
	if len(data) > maxMessage-margin {
		return nil, invalid("action_result", "%d bytes are more than a message can hold", len(data))
	}
	if err := s.actions.Put(ctx, actioncache.Key{Instance: req.InstanceName, Action: action}, data); err != nil {
		return nil, fmt.Errorf("store the result of action %s: %w", action, err)
	}
	return r, nil
}

// checkResult refuses results that nobody could use.
func checkResult(dec *decoder, r *repb.ActionResult) error {
	if r == nil {
		return invalid("action_result", "is not set")
	}
	if r.ExitCode != 0 {
		return invalid("action_result.exit_code", "%d: only results of success are cached", r.ExitCode)
	}
	c := collector{dec: dec}
	if err := c.result(r); err != nil {
		return err
	}
	for i, file := range r.OutputFiles {
		if err := checkResultPath(file.Path, fmt.Sprintf("action_result.output_files[%d].path", i)); err != nil {
			return err
		}
	}
	for i, dir := range r.OutputDirectories {
		if dir.Path == "" { // the working directory
			continue
		}
		if err := checkResultPath(dir.Path, fmt.Sprintf("action_result.output_directories[%d].path", i)); err != nil {
			return err
		}
	}
	for _, links := range [][]*repb.OutputSymlink{r.OutputSymlinks, r.OutputFileSymlinks, r.OutputDirectorySymlinks} {
		for _, link := range links {
			if err := checkResultPath(link.GetPath(), "action_result.output_symlinks.path"); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkResultPath(path, field string) error {
	if path == "" {
		return invalid(field, "is empty")
	}
	return checkPath(path, field)
}

// outline moves inline data to where entries of the action cache have it: into
// the CAS. What has a digest already is there by the client's promise.
func (f *Frontend) outline(ctx context.Context, fn digest.Function, r *repb.ActionResult) error {
	var bs []blob.Blob
	store := func(data *[]byte, to **repb.Digest) {
		if len(*data) > 0 && *to == nil {
			d := digest.Of(fn, *data)
			bs = append(bs, blob.Blob{Digest: d, Data: *data})
			*to = digestProto(d)
		}
		*data = nil
	}
	store(&r.StdoutRaw, &r.StdoutDigest)
	store(&r.StderrRaw, &r.StderrDigest)
	for i, file := range r.OutputFiles {
		if len(file.Contents) > 0 {
			d := digest.Of(fn, file.Contents)
			if !proto.Equal(digestProto(d), file.Digest) {
				return invalid(fmt.Sprintf("action_result.output_files[%d].contents", i), "%s", blob.ErrMismatch)
			}
			bs = append(bs, blob.Blob{Digest: d, Data: file.Contents})
		}
		file.Contents = nil
	}
	for i, err := range f.writeAll(ctx, bs) {
		if err != nil {
			return fmt.Errorf("store the action's output %s: %w", bs[i].Digest, err)
		}
	}
	return nil
}
