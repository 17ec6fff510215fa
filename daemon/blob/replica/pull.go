package replica

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/blob/disk"
	"github.com/remex-build/terraform-provider-remex/daemon/cluster"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
)

// slowest is the rate, in bytes a second, below which a transfer between nodes
// is given up.
const slowest = 4 << 20

func transferTimeout(size int64) time.Duration {
	return putTimeout + time.Duration(size/slowest)*time.Second
}

// kindOf is as what this node's disk keeps d, given whom the writer has passed
// over.
func (s *Store) kindOf(d digest.Digest, sk skips) disk.Kind {
	if s.view().counts(d, s.local.ID(), s.r, func(id cluster.DiskID) bool { return sk.all[id] }) {
		return disk.Owned
	}
	return disk.Cached
}

// vouches reports whether this node's disk has d, and holds itself to be one of
// those that are to have it.
func (s *Store) vouches(d digest.Digest, sk skips) bool {
	return d.IsEmpty() || s.held(d, disk.Cached) && s.keeper.counts(d, sk) && s.held(d, disk.Owned)
}

// ack is what this node's disk says of a blob that it has got.
func (s *Store) ack(d digest.Digest, sk skips) pb.Ack {
	s.keeper.arrived(d)
	if s.vouches(d, sk) {
		return pb.Ack_ACK_OWNED
	}
	return pb.Ack_ACK_CACHED
}

// held reports whether this node's disk holds d already, and makes the copy an
// owned one if it is to be.
func (s *Store) held(d digest.Digest, kind disk.Kind) bool {
	if s.local.Presence([]digest.Digest{d}, true)[0] != disk.Present {
		return false
	}
	return kind != disk.Owned || s.local.SetKind(d, disk.Owned)
}

// pullHere brings d from one of its holders onto this node's disk.
func (s *Store) pullHere(ctx context.Context, d digest.Digest, from []string, sk skips) outcome {
	kind := s.kindOf(d, sk)
	if d.IsEmpty() || s.held(d, kind) {
		return outcome{ack: s.ack(d, sk)}
	}
	err := s.keeper.refusal()
	if err != nil {
		return outcome{err: err}
	}
	for _, addr := range from {
		if addr == s.selfAddr {
			continue
		}
		if err = s.pullFrom(ctx, d, kind, addr); err == nil {
			return outcome{ack: s.ack(d, sk)}
		}
		if errors.Is(err, blob.ErrFull) {
			s.keeper.refuse(d)
		}
		if ctx.Err() != nil {
			break
		}
	}
	if err == nil {
		err = blob.ErrNotFound
	}
	// Whatever kept the holders from giving it is no word on the sender's bytes.
	return outcome{err: fmt.Errorf("pull %s: %w", d, err)}
}

func (s *Store) pullFrom(ctx context.Context, d digest.Digest, kind disk.Kind, addr string) error {
	if d.Size() <= blob.SmallSize {
		rs, err := s.getFrom(ctx, addr, []digest.Digest{d})
		if err != nil {
			return err
		}
		if rs[0].Err != nil {
			return rs[0].Err
		}
		return s.local.PutBatch(ctx, kind, []blob.Blob{{Digest: d, Data: rs[0].Data}})[0]
	}
	src, err := s.openRemote(ctx, addr, d, 0)
	if err != nil {
		return err
	}
	defer src.Close()
	return s.local.Put(ctx, d, kind, src)
}
