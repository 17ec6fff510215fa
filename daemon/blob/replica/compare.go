package replica

import (
	"context"
	"encoding/binary"
	"errors"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/remex-build/terraform-provider-remex/daemon/blob/disk"
	"github.com/remex-build/terraform-provider-remex/daemon/blob/repair"
	"github.com/remex-build/terraform-provider-remex/daemon/cluster"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
)

// listAtOnce is how many copies an answer lists, give or take a partition.
const listAtOnce = 16 << 10

// compare puts the core's questions, one at a time to each disk.
func (k *keeper) compare(ctx context.Context) {
	every(ctx, compareEvery, nil, func() {
		if !k.local.Loaded() {
			return // what is not read yet would be fetched again
		}
		k.mu.Lock()
		asks := k.core.Asks(time.Now())
		k.mu.Unlock()
		for _, a := range asks {
			k.s.spawn(func() { k.compareWith(ctx, a) })
		}
	})
}

func (k *keeper) compareWith(ctx context.Context, a repair.Ask) {
	ctx, cancel := context.WithTimeout(ctx, compareLimit)
	defer cancel()
	adopted, told, err := k.learn(ctx, a)
	if err != nil {
		k.s.log.Debug("comparing", "peer", a.Disk.Node, "err", err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.core.Told(time.Now(), a, adopted, told)
}

// learn finds out what another disk owns that this one should.
func (k *keeper) learn(ctx context.Context, a repair.Ask) (adopted, told *repair.Set, err error) {
	id := k.local.ID()
	req := &pb.CompareRequest{Disk: id[:], Parts: a.Parts.Append(nil), Prints: k.prints(a.Parts)}
	var resp pb.CompareResponse
	if err := k.s.call(ctx, putTimeout, a.Disk.Addr, pb.Method_METHOD_BLOB_COMPARE, req, &resp); err != nil {
		return nil, nil, unreached(err)
	}
	if resp.Loading {
		return nil, nil, errors.New("its index is still being read")
	}
	if adopted, err = repair.ParseSet(resp.Adopted); err != nil {
		return nil, nil, err
	}
	differ, err := repair.ParseSet(resp.Differ)
	if err != nil {
		return nil, nil, err
	}
	told = new(repair.Set)
	for i := range told {
		told[i] = a.Parts[i] &^ differ[i]
	}
	differing := differ.Len()
	if differing == 0 {
		return adopted, told, nil
	}
	// What is listed counts even if the end of the list is never reached.
	err = k.list(ctx, a, differ, told)
	return adopted, told, err
}

// prints packs the prints of parts that are not empty.
func (k *keeper) prints(parts *repair.Set) (b []byte) {
	parts.All(func(q uint16) bool {
		if p := k.local.Print(q); p.Count > 0 {
			b = binary.LittleEndian.AppendUint16(b, q)
			b = binary.LittleEndian.AppendUint32(b, p.Count)
			b = binary.LittleEndian.AppendUint64(b, p.Sum)
		}
		return true
	})
	return b
}

const printSize = 2 + 4 + 8

// list reads what the disk of a owns in the partitions of differ, and adds those
// that it has read to told.
func (k *keeper) list(ctx context.Context, a repair.Ask, differ, told *repair.Set) error {
	id := k.local.ID()
	parts := differ.Append(nil)
	for after := uint32(0); after < repair.Partitions; {
		var resp pb.ListResponse
		req := &pb.ListRequest{Disk: id[:], Parts: parts, After: after}
		if err := k.s.call(ctx, putTimeout, a.Disk.Addr, pb.Method_METHOD_BLOB_LIST, req, &resp); err != nil {
			return unreached(err)
		}
		if resp.Loading || resp.Next <= after {
			return errors.New("its index is still being read")
		}
		ds, err := digest.Unpack(resp.Digests)
		if err != nil {
			return err
		}
		if !k.take(ds, resp.Touches, a.Disk.ID) {
			return errors.New("too much has still to be fetched to take more on")
		}
		for q := after; q < min(resp.Next, repair.Partitions); q++ {
			if differ.Has(uint16(q)) {
				told.Add(uint16(q))
			}
		}
		after = resp.Next
	}
	return nil
}

// take notes what of ds is to be fetched, and reports whether all of it was.
func (k *keeper) take(ds []digest.Digest, touches []byte, from cluster.DiskID) bool {
	all := true
	for i, p := range k.local.Presence(ds, false) {
		d, touch := ds[i], touchAt(touches, i)
		switch {
		case touch != 0 && touch <= k.local.Horizon(d.Prefix()):
		case p != disk.Present:
			k.mu.Lock()
			if k.core.Owns(d.Prefix()) && !k.known.Note(time.Now(), d, touch, from, repair.Usual) {
				all = false
			}
			k.mu.Unlock()
		case k.s.owned(d):
			// It was fetched as an input, or is owned already.
			k.local.SetKind(d, disk.Owned)
		}
	}
	wake(k.kick)
	return all
}

func diskID(b []byte) (cluster.DiskID, error) {
	if len(b) != len(cluster.DiskID{}) {
		return cluster.DiskID{}, invalid("%d bytes are no disk's id", len(b))
	}
	return cluster.DiskID(b), nil
}

// asker reads the head of a comparison. That somebody asks is heard before what
// is here is looked at: see keeper.counts.
func (s *Server) asker(id, packed []byte) (cluster.DiskID, *repair.Set, error) {
	from, err := diskID(id)
	if err != nil {
		return from, nil, err
	}
	parts, err := repair.ParseSet(packed)
	if err != nil {
		return from, nil, invalid("%v", err)
	}
	k := s.store.keeper
	k.mu.Lock()
	k.hearLocked(from)
	k.mu.Unlock()
	return from, parts, nil
}

// compare tells in which partitions this disk owns other blobs than the asker.
func (s *Server) compare(_ context.Context, _ string, req *pb.CompareRequest) (*pb.CompareResponse, error) {
	from, parts, err := s.asker(req.Disk, req.Parts)
	if err != nil {
		return nil, err
	}
	if len(req.Prints)%printSize != 0 {
		return nil, invalid("compare: %d bytes of prints", len(req.Prints))
	}
	if !s.local.Loaded() {
		return &pb.CompareResponse{Loading: true}, nil
	}
	theirs := make(map[uint16]disk.Print, len(req.Prints)/printSize)
	for b := req.Prints; len(b) > 0; b = b[printSize:] {
		theirs[binary.LittleEndian.Uint16(b)] = disk.Print{Count: binary.LittleEndian.Uint32(b[2:]), Sum: binary.LittleEndian.Uint64(b[6:])}
	}
	// Whether this disk still takes others for owners is looked at before what
	// it has: what it takes afterwards the asker has a part in.
	tab := s.store.placement.Table()
	adopted, differ := new(repair.Set), new(repair.Set)
	parts.All(func(q uint16) bool {
		if tab.IsOwner(q, from) {
			adopted.Add(q)
		}
		if p := s.local.Print(q); p.Count > 0 && p != theirs[q] {
			differ.Add(q)
		}
		return true
	})
	return &pb.CompareResponse{Adopted: adopted.Append(nil), Differ: differ.Append(nil)}, nil
}

// list tells what this disk owns.
func (s *Server) list(_ context.Context, _ string, req *pb.ListRequest) (*pb.ListResponse, error) {
	_, parts, err := s.asker(req.Disk, req.Parts)
	if err != nil {
		return nil, err
	}
	if !s.local.Loaded() {
		return &pb.ListResponse{Loading: true}, nil
	}
	if req.After >= repair.Partitions {
		return nil, status.Error(codes.InvalidArgument, "list: no such partition")
	}
	cs, next := s.local.List(parts.Has, int(req.After), listAtOnce)
	resp := &pb.ListResponse{Next: uint32(next)}
	for _, c := range cs {
		if c.Touch > s.local.Horizon(c.Digest.Prefix()) {
			resp.Digests = c.Digest.Append(resp.Digests)
			resp.Touches = appendTouches(resp.Touches, c.Touch)
		}
	}
	return resp, nil
}
