package action

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"google.golang.org/protobuf/proto"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/blob/replica"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	"github.com/remex-build/terraform-provider-remex/daemon/sandbox"
)

// prepared is an action understood and fetched: all that it needs is on this
// node's disk.
type prepared struct {
	action  *repb.Action
	command *command
	plan    *sandbox.Plan
	began   time.Time // when this worker took the action up
}

// prepare takes the task's messages apart and fetches its inputs. Everything
// that is missing is told at once.
func (a *Actions) prepare(ctx context.Context, t *Task) (*prepared, error) {
	p := &prepared{action: &repb.Action{}, began: time.Now()}
	fn := t.Action.Function()
	if !fn.Computable() {
		return nil, invalid("digest function %s is not supported", fn)
	}
	missing, err := a.message(ctx, t.Action, t.ActionBlob, p.action)
	if err != nil {
		return nil, err
	}
	if len(missing) > 0 {
		return nil, &missingError{missing}
	}
	timeout := p.action.GetTimeout()
	if timeout != nil && timeout.CheckValid() != nil || timeout.AsDuration() < 0 {
		return nil, invalid("the action's timeout is not a duration: %v", timeout)
	}
	commandDigest, err := parseDigest(fn, p.action.GetCommandDigest())
	if err != nil {
		return nil, invalid("command_digest: %v", err)
	}
	root, err := parseDigest(fn, p.action.GetInputRootDigest())
	if err != nil {
		return nil, invalid("input_root_digest: %v", err)
	}
	var c repb.Command
	if missing, err = a.message(ctx, commandDigest, t.CommandBlob, &c); err != nil {
		return nil, err
	}
	if len(missing) == 0 {
		if p.command, err = parseCommand(&c, timeout.AsDuration()); err != nil {
			return nil, err
		}
	}
	tree, lost, err := a.tree(ctx, root, t.RootBlob)
	if err != nil {
		return nil, err
	}
	missing = append(missing, lost...)
	if p.plan, err = sandbox.NewPlan(tree); err != nil {
		return nil, err
	}
	return p, a.bring(ctx, p.plan.Digests(), missing)
}

// bring fetches files, or says what is missing of them and besides.
func (a *Actions) bring(ctx context.Context, files, missing []digest.Digest) error {
	if len(missing) == 0 {
		return a.fetch(ctx, files)
	}
	// It cannot run anyhow: nothing is fetched for it.
	more, err := a.o.Store.Missing(ctx, files)
	if err != nil {
		return fmt.Errorf("look for inputs: %w", err)
	}
	return &missingError{append(missing, more...)}
}

func (a *Actions) fetch(ctx context.Context, ds []digest.Digest) error {
	if len(ds) == 0 {
		return nil
	}
	err := a.o.Store.Fetch(ctx, ds)
	if lost, ok := errors.AsType[*replica.MissingError](err); ok {
		return &missingError{lost.Digests}
	}
	if err != nil {
		return fmt.Errorf("fetch inputs: %w", err)
	}
	return nil
}

// maxMessage bounds a single message that an action is made of.
const maxMessage = 64 << 20

// message reads the message m named d. data is what came with the offer, if
// anything did.
func (a *Actions) message(ctx context.Context, d digest.Digest, data []byte, m proto.Message) (missing []digest.Digest, err error) {
	parse := func(_ int, data []byte) error {
		if err := proto.Unmarshal(data, m); err != nil {
			return invalid("%s: not a %s message: %v", d, m.ProtoReflect().Descriptor().Name(), err)
		}
		return nil
	}
	if d.IsEmpty() {
		return nil, nil
	}
	if len(data) > 0 && digest.Of(d.Function(), data) == d {
		return nil, parse(0, data)
	}
	return a.read(ctx, []digest.Digest{d}, parse)
}

// readBatch is how many bytes of small blobs are asked for at a time.
const readBatch = 4 << 20

// read reads whole blobs and hands each to take with its place in ds. It
// returns those that are missing.
func (a *Actions) read(ctx context.Context, ds []digest.Digest, take func(i int, data []byte) error) (missing []digest.Digest, err error) {
	var small []digest.Digest
	var at []int
	var size int64
	flush := func() error {
		for j, r := range a.o.Store.GetBatch(ctx, small) {
			switch {
			case blob.IsNotFound(r.Err):
				missing = append(missing, small[j])
			case r.Err != nil:
				return fmt.Errorf("read %s: %w", small[j], r.Err)
			default:
				if err := take(at[j], r.Data); err != nil {
					return err
				}
			}
		}
		small, at, size = small[:0], at[:0], 0
		return nil
	}
	for i, d := range ds {
		switch {
		case d.Size() > maxMessage:
			return nil, invalid("%s: a message of more than %d bytes", d, maxMessage)
		case d.Size() > blob.SmallSize:
			data, err := a.readLarge(ctx, d)
			if blob.IsNotFound(err) {
				missing = append(missing, d)
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("read %s: %w", d, err)
			}
			if err := take(i, data); err != nil {
				return nil, err
			}
		default:
			small, at, size = append(small, d), append(at, i), size+d.Size()
			if size >= readBatch {
				if err := flush(); err != nil {
					return nil, err
				}
			}
		}
	}
	if len(small) == 0 {
		return missing, nil
	}
	return missing, flush()
}

func (a *Actions) readLarge(ctx context.Context, d digest.Digest) ([]byte, error) {
	r, err := a.o.Store.Get(ctx, d, 0)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data := make([]byte, d.Size())
	_, err = io.ReadFull(r, data)
	return data, err
}

// missingError is an action whose inputs are not all to be had.
type missingError struct{ digests []digest.Digest }

func (e *missingError) Error() string {
	return fmt.Sprintf("%d blobs that the action needs are missing", len(e.digests))
}

// unique sorts the digests and drops repetitions.
func (e *missingError) unique() []digest.Digest {
	slices.SortFunc(e.digests, digest.Digest.Compare)
	e.digests = slices.Compact(e.digests)
	return e.digests
}
