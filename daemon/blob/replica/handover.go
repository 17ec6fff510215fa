package replica

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/remex-build/terraform-provider-remex/daemon/blob/disk"
	"github.com/remex-build/terraform-provider-remex/daemon/blob/repair"
	"github.com/remex-build/terraform-provider-remex/daemon/cluster"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
)

// Left is what a disk still keeps that is not safe elsewhere.
type Left struct {
	Blobs, Bytes int64
}

// Keeping is how far a disk is what the cluster takes it to be.
type Keeping struct {
	View           uint64 // of the placement that it goes by
	Owned, Settled int    // partitions
	Missing        int    // blobs to be fetched
	MissingBytes   int64
	Lag            time.Duration // how long the first of them has been known
	Foreign        int64         // owned copies whose owners are others
}

// Keeping describes this node's own disk.
func (s *Store) Keeping() Keeping { return s.keeper.status() }

func (k *keeper) status() (st Keeping) {
	k.mu.Lock()
	defer k.mu.Unlock()
	st.View = k.core.View()
	st.Owned, st.Settled = k.core.Progress()
	st.Missing, st.MissingBytes = k.known.Len(), k.known.Bytes()
	if at := k.known.Oldest(); !at.IsZero() {
		st.Lag = time.Since(at)
	}
	if l := k.left.Load(); l != nil {
		st.Foreign = l.Blobs
	}
	return st
}

// handOver gives up, round by round, the owned copies whose owners are others.
func (k *keeper) handOver(ctx context.Context) {
	every(ctx, handOverEvery, k.turn, func() {
		if !k.local.Loaded() || !k.s.settled() {
			return
		}
		if left := k.giveUp(ctx); ctx.Err() == nil {
			k.left.Store(&left)
		}
	})
}

// giveUp asks the owners of all that this disk keeps and does not own, and stops
// keeping what they have. It returns what is left, which is right unless ctx has
// ended.
func (k *keeper) giveUp(ctx context.Context) (left Left) {
	tab := k.s.placement.Table()
	id := k.local.ID()
	foreign := func(q uint16) bool { return !tab.IsOwner(q, id) }
	for next := 0; next < repair.Partitions && ctx.Err() == nil; {
		var cs []disk.Copy
		cs, next = k.local.List(foreign, next, maxConfirm)
		for len(cs) > 0 {
			n := min(len(cs), maxConfirm)
			kept := k.confirm(ctx, cs[:n])
			left.Blobs += kept.Blobs
			left.Bytes += kept.Bytes
			cs = cs[n:]
		}
	}
	return left
}

// maxConfirm is how many copies are asked about at a time.
const maxConfirm = 4096

// confirm asks the owners of cs for their copies, and makes those cached that
// all of them have.
func (k *keeper) confirm(ctx context.Context, cs []disk.Copy) (kept Left) {
	v := k.s.view()
	type asked struct {
		of  []int32
		out []byte
	}
	byOwner := make(map[int32]*asked)
	var some [8]int32
	for i, c := range cs {
		for _, o := range v.owners(some[:0], c.Digest) {
			if byOwner[o] == nil {
				byOwner[o] = new(asked)
			}
			byOwner[o].of = append(byOwner[o].of, int32(i))
		}
	}
	had := make([]int, len(cs)) // owners that have it or don't want it
	held := make([]bool, len(cs))
	var wg sync.WaitGroup
	for on, a := range byOwner {
		wg.Go(func() { a.out = k.confirmWith(ctx, v, on, cs, a.of) })
	}
	wg.Wait()
	for _, a := range byOwner {
		for j, i := range a.of {
			if j >= len(a.out) {
				break
			}
			switch pb.Confirmation(a.out[j]) {
			case pb.Confirmation_CONFIRMATION_HELD:
				had[i]++
				held[i] = true
			case pb.Confirmation_CONFIRMATION_UNWANTED:
				had[i]++
			}
		}
	}
	want := min(k.s.r, v.placed)
	var sole []digest.Digest
	for i, c := range cs {
		// With nobody left to take it, what is here is all that there is.
		if want > 0 && had[i] == want {
			k.local.SetKind(c.Digest, disk.Cached)
			k.m.given.Inc()
			continue
		}
		kept.Blobs++
		kept.Bytes += c.Digest.Size()
		if !held[i] {
			sole = append(sole, c.Digest)
		}
	}
	if k.leaves.Load() && len(sole) > 0 {
		k.hurry(ctx, v, sole)
	}
	return kept
}

// confirmWith asks one owner.
func (k *keeper) confirmWith(ctx context.Context, v *view, on int32, cs []disk.Copy, of []int32) []byte {
	id := k.local.ID()
	req := &pb.ConfirmRequest{Holder: id[:], Leaves: k.leaves.Load()}
	for _, i := range of {
		req.Digests = cs[i].Digest.Append(req.Digests)
		req.Touches = appendTouches(req.Touches, cs[i].Touch)
	}
	var resp pb.ConfirmResponse
	if err := k.s.call(ctx, putTimeout, v.disks[on].Addr, pb.Method_METHOD_BLOB_CONFIRM, req, &resp); err != nil {
		k.s.log.Debug("owner does not confirm", "peer", v.disks[on].Node, "err", err)
		return nil
	}
	return resp.Confirmations
}

// hurry has what nobody else has fetched before all else.
func (k *keeper) hurry(ctx context.Context, v *view, sole []digest.Digest) {
	id := k.local.ID()
	byOwner := make(map[int32][]digest.Digest)
	var some [8]int32
	for _, d := range sole {
		for _, o := range v.owners(some[:0], d) {
			byOwner[o] = append(byOwner[o], d)
		}
	}
	for on, ds := range byOwner {
		req := &pb.ConfirmRequest{Holder: id[:], Digests: digest.Pack(ds), Leaves: true, Sole: make([]byte, (len(ds)+7)/8)}
		now := uint32(time.Now().Unix())
		for i := range ds {
			req.Touches = appendTouches(req.Touches, now)
			req.Sole[i/8] |= 1 << (i % 8)
		}
		var resp pb.ConfirmResponse
		if err := k.s.call(ctx, putTimeout, v.disks[on].Addr, pb.Method_METHOD_BLOB_CONFIRM, req, &resp); err != nil {
			k.s.log.Debug("owner not told to hurry", "peer", v.disks[on].Node, "err", err)
		}
	}
}

// confirm answers as an owner for copies that others would like to give up, and
// has fetched what is not here.
func (s *Server) confirm(_ context.Context, _ string, req *pb.ConfirmRequest) (*pb.ConfirmResponse, error) {
	holder, err := diskID(req.Holder)
	if err != nil {
		return nil, err
	}
	ds, err := digest.Unpack(req.Digests)
	if err != nil {
		return nil, invalid("confirm: %v", err)
	}
	resp := &pb.ConfirmResponse{Confirmations: make([]byte, len(ds))}
	k := s.store.keeper
	if !s.local.Loaded() || k.leaves.Load() {
		return resp, nil
	}
	for i, p := range s.local.Presence(ds, false) {
		resp.Confirmations[i] = byte(k.confirmation(ds[i], p, touchAt(req.Touches, i), holder, urgency(req, i)))
	}
	return resp, nil
}

func urgency(req *pb.ConfirmRequest, i int) repair.Urgency {
	switch {
	case i/8 < len(req.Sole) && req.Sole[i/8]>>(i%8)&1 != 0:
		return repair.Sole
	case req.Leaves:
		return repair.Leaves
	}
	return repair.Usual
}

func (k *keeper) confirmation(d digest.Digest, p disk.Presence, touch uint32, holder cluster.DiskID, u repair.Urgency) pb.Confirmation {
	switch {
	case !k.s.owned(d):
		return pb.Confirmation_CONFIRMATION_NONE
	case p == disk.Present && k.local.SetKind(d, disk.Owned):
		return pb.Confirmation_CONFIRMATION_HELD
	case touch <= k.local.Horizon(d.Prefix()):
		return pb.Confirmation_CONFIRMATION_UNWANTED
	case k.note(d, touch, holder, u):
		return pb.Confirmation_CONFIRMATION_NOTED
	}
	return pb.Confirmation_CONFIRMATION_NONE
}

// reservation is room on this disk for what another one drains.
type reservation struct {
	bytes int64
	until time.Time
}

// reservedFor is how long a drain that says nothing keeps its room.
const reservedFor = 2 * time.Minute

// reserve keeps room here for a disk that drains, as much as there is.
func (s *Server) reserve(_ context.Context, _ string, req *pb.ReserveRequest) (*pb.ReserveResponse, error) {
	id, err := diskID(req.Disk)
	if err != nil {
		return nil, err
	}
	if req.Bytes < 0 {
		return nil, invalid("reserve: %d bytes", req.Bytes)
	}
	k := s.store.keeper
	st := s.local.Stats()
	// Cached copies make way for owned ones.
	room := st.Capacity/10*9 - st.OwnedBytes
	now := time.Now()
	k.mu.Lock()
	defer k.mu.Unlock()
	for other, r := range k.room {
		switch {
		case now.After(r.until) || other == id:
			delete(k.room, other)
		default:
			room -= r.bytes
		}
	}
	room = max(room-k.known.Bytes(), 0)
	if k.leaves.Load() {
		room = 0
	}
	if req.Bytes > 0 && req.Bytes <= room {
		k.room[id] = reservation{req.Bytes, now.Add(reservedFor)}
	}
	return &pb.ReserveResponse{Room: room, Granted: req.Bytes > 0 && req.Bytes <= room}, nil
}

// Drain empties this node's own disk.
type Drain struct{ k *keeper }

// Drain is how this node's disk is drained.
func (s *Store) Drain() *Drain { return &Drain{s.keeper} }

// Admit reports whether what the disk owns fits on the others, and keeps the
// room for it. The error names the bytes that lack room.
func (d *Drain) Admit(ctx context.Context) error {
	k := d.k
	v := k.s.view()
	var others []int32
	for i := range int32(v.placed) {
		if i != v.self {
			others = append(others, i)
		}
	}
	if len(others) == 0 {
		return nil // nobody is left to take over
	}
	need := k.local.Stats().OwnedBytes
	if len(others) < k.s.r {
		need = 0 // the others have it all already, or will have to live with less
	}
	rooms := make([]int64, len(others))
	ask := func(bytes func(i int) int64) error {
		errs := make([]error, len(others))
		var wg sync.WaitGroup
		for i, on := range others {
			wg.Go(func() {
				id := k.local.ID()
				var resp pb.ReserveResponse
				errs[i] = k.s.call(ctx, askTimeout, v.disks[on].Addr, pb.Method_METHOD_DISK_RESERVE, &pb.ReserveRequest{Disk: id[:], Bytes: bytes(i)}, &resp)
				if errs[i] == nil {
					rooms[i] = resp.Room
				}
			})
		}
		wg.Wait()
		return errors.Join(errs...)
	}
	if err := ask(func(int) int64 { return 0 }); err != nil {
		return fmt.Errorf("not every disk tells how much room it has: %w", err)
	}
	var room int64
	for _, r := range rooms {
		room += r
	}
	// Placement spreads by weight and not by room: a little is left over.
	if need+need/20 > room {
		return fmt.Errorf("the other disks have room for %d of the %d bytes that this one owns: add a worker, or wait until old blobs may go", room, need)
	}
	share := func(i int) int64 { return min(rooms[i], need/int64(len(others))+need/20/int64(len(others))) }
	if need == 0 {
		return nil
	}
	return ask(share)
}

// Run announces nothing: the node has told that it drains. It hands over until
// all that this disk owns is safe elsewhere, and then returns nil. When ctx ends
// before, the error says what was not.
func (d *Drain) Run(ctx context.Context) error {
	k := d.k
	k.leaves.Store(true)
	st := k.local.Stats()
	k.left.Store(&Left{st.OwnedBlobs, st.OwnedBytes})
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		left := k.giveUp(ctx)
		if ctx.Err() != nil {
			left = *k.left.Load()
		}
		k.left.Store(&left)
		v := k.s.view()
		placed := v.self >= 0 && int(v.self) < v.placed
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("%d blobs, %d bytes were not confirmed by others in time", left.Blobs, left.Bytes)
		case placed:
			// Placement has yet to hear that this node drains.
		case v.placed == 0, left.Blobs == 0:
			return nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// Cancel takes the disk into use again.
func (d *Drain) Cancel() { d.k.leaves.Store(false) }

// Left is what is not yet known to be safe elsewhere.
func (d *Drain) Left() (blobs, bytes int64) {
	if l := d.k.left.Load(); l != nil {
		return l.Blobs, l.Bytes
	}
	st := d.k.local.Stats()
	return st.OwnedBlobs, st.OwnedBytes
}
