package replica

import (
	"context"
	"encoding/binary"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/time/rate"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/blob/disk"
	"github.com/remex-build/terraform-provider-remex/daemon/blob/repair"
	"github.com/remex-build/terraform-provider-remex/daemon/cluster"
	"github.com/remex-build/terraform-provider-remex/daemon/cluster/placement"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
)

// How often the parts of a keeper look.
const (
	probeEvery    = 500 * time.Millisecond
	probeTimeout  = time.Second
	compareEvery  = 50 * time.Millisecond
	handOverEvery = 5 * time.Second
	// A full round of the periodic check takes checkSlices times checkEvery.
	checkEvery  = 10 * time.Second
	checkSlices = 60
	// refusalKept is how long a disk that refused a blob is not sure that the
	// blob is absent: as long as its writer may still be looking for another.
	refusalKept  = longestWait + 10*time.Second
	maxRefusals  = 16 << 10
	compareLimit = 30 * time.Second
)

// keeper keeps a worker's disk what the cluster takes it to be: it knows of all
// that the disk owns, fetches what is not there, gives up what others own, and
// empties the disk when it is to leave. What it knows is in the cores of package
// repair; here are their clocks, calls and files.
type keeper struct {
	s     *Store
	local Disk
	m     *keeperMetrics
	limit *rate.Limiter // of the bytes that are fetched

	mu       sync.Mutex // guards everything below; never held across I/O
	core     *repair.Core
	known    *repair.Known
	heard    map[cluster.DiskID]time.Time // when a disk was last heard here
	refusals map[digest.Digest]time.Time
	room     map[cluster.DiskID]reservation
	slice    int

	kick   chan struct{} // a fetch is due
	turn   chan struct{} // hand over now
	pace   pace
	leaves atomic.Bool // the node drains
	left   atomic.Pointer[Left]
}

func newKeeper(s *Store, o Options) *keeper {
	k := &keeper{
		s: s, local: s.local, limit: rate.NewLimiter(rate.Inf, maxBatch),
		core: repair.New(s.local.ID()), known: repair.NewKnown(repair.MaxKnown),
		heard: make(map[cluster.DiskID]time.Time), refusals: make(map[digest.Digest]time.Time),
		room: make(map[cluster.DiskID]reservation),
		kick: make(chan struct{}, 1), turn: make(chan struct{}, 1),
	}
	if o.RepairRate > 0 {
		k.limit = rate.NewLimiter(rate.Limit(o.RepairRate), max(maxBatch, int(min(o.RepairRate, 1<<30))))
	}
	k.pace.init()
	k.m = newKeeperMetrics(o.Registerer, k)
	return k
}

// run keeps the disk until ctx ends.
func (k *keeper) run(ctx context.Context) {
	var wg sync.WaitGroup
	for _, part := range []func(context.Context){k.follow, k.probe, k.compare, k.refill, k.handOver} {
		wg.Go(func() { part(ctx) })
	}
	wg.Wait()
}

// every calls f at once and then each d, until ctx ends.
func every(ctx context.Context, d time.Duration, wake <-chan struct{}, f func()) {
	tick := time.NewTicker(d)
	defer tick.Stop()
	for {
		f()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-wake:
		}
	}
}

// follow gives the core each new table, and time.
func (k *keeper) follow(ctx context.Context) {
	tick := time.NewTicker(compareEvery)
	defer tick.Stop()
	check := time.Now().Add(checkEvery)
	for {
		changed := k.s.placement.Changed()
		k.adopt()
		for moved := false; !moved; {
			select {
			case <-ctx.Done():
				return
			case <-changed:
				moved = true
			case now := <-tick.C:
				k.tick(now, !now.Before(check))
				if !now.Before(check) {
					check = now.Add(checkEvery)
				}
			}
		}
	}
}

func (k *keeper) adopt() {
	tab := k.s.placement.Table()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.core.Table(time.Now(), tab)
	// What this disk no longer owns others fetch.
	k.known.Keep(func(d digest.Digest) bool { return k.core.Owns(d.Prefix()) })
	wake(k.turn)
}

func (k *keeper) tick(now time.Time, check bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.core.Tick(now)
	for d, at := range k.refusals {
		if now.Sub(at) > refusalKept {
			// Whoever has it by now tells of it.
			delete(k.refusals, d)
			k.core.Doubt(d.Prefix())
		}
	}
	if check {
		k.slice = (k.slice + 1) % checkSlices
		k.core.Check(func(q uint16) bool { return int(q)%checkSlices == k.slice })
	}
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// probe asks those who judge whether this disk is in reach, and learns from how
// long they take how busy the cluster is.
func (k *keeper) probe(ctx context.Context) {
	every(ctx, probeEvery, nil, func() {
		k.mu.Lock()
		judges := k.core.Witnesses()
		k.mu.Unlock()
		for _, d := range judges {
			k.s.spawn(func() { k.ask(ctx, d) })
		}
	})
}

// ask pings one disk.
func (k *keeper) ask(ctx context.Context, d placement.Disk) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	sent := time.Now()
	err := k.s.peers.Call(ctx, d.Addr, pb.Method_METHOD_PING, &pb.Ping{}, &pb.Ping{})
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case err == nil:
		k.core.Answered(d.ID, sent)
		k.hearLocked(d.ID)
		k.pace.sample(time.Since(sent))
	case refused(err):
		k.core.Answered(d.ID, sent)
		delete(k.heard, d.ID)
	}
}

// refused reports whether a port refused: its host is there, its process is not.
// gRPC keeps only its text.
func refused(err error) bool { return strings.Contains(err.Error(), syscall.ECONNREFUSED.Error()) }

func (k *keeper) hearLocked(id cluster.DiskID) { k.heard[id] = time.Now() }

// hears reports whether a disk was heard here lately.
func (k *keeper) hears(id cluster.DiskID) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	at, ok := k.heard[id]
	return ok && time.Since(at) < repair.Silence
}

// presence is what this disk answers for ds. Settledness is looked at first:
// what was known then is looked at next, and what is here last, the direction in
// which blobs move.
func (k *keeper) presence(ds []digest.Digest, touch, held bool) []disk.Presence {
	now := time.Now()
	sure := make([]bool, len(ds))
	known := make([]bool, len(ds))
	k.mu.Lock()
	k.core.InReach(now)
	for i, d := range ds {
		_, refused := k.refusals[d]
		sure[i] = !refused && k.core.Settled(d.Prefix())
		known[i] = k.known.Has(d)
	}
	k.mu.Unlock()
	trust := k.s.settled()
	ps := k.local.Presence(ds, touch)
	for i, p := range ps {
		switch {
		case p != disk.Absent:
		case known[i] && held:
			ps[i] = disk.Unknown
		case known[i]:
			ps[i] = disk.Present
		case sure[i] && trust:
			ps[i] = missingHere
		}
	}
	return ps
}

// missingHere is "absent" from a settled owner.
const missingHere = disk.Presence(pb.Presence_PRESENCE_MISSING)

// counts reports whether this disk's copy of d is one that an acknowledgement
// may count on. It is asked when the copy is there: who compares with this disk
// before that is heard by now, and who compares later is told of the copy.
func (k *keeper) counts(d digest.Digest, skips skips) bool {
	p := d.Prefix()
	k.mu.Lock()
	owner, adopted := k.core.Owns(p), k.core.Adopted(p)
	k.mu.Unlock()
	tab := k.s.placement.Table()
	if owner || tab.IsOwner(p, k.local.ID()) {
		return owner && adopted
	}
	if len(skips.all) == 0 {
		return false
	}
	return k.s.view().counts(d, k.local.ID(), k.s.r, func(id cluster.DiskID) bool {
		return skips.refused[id] || skips.all[id] && !k.hears(id)
	})
}

// refuse remembers that this disk, an owner, has refused a blob, which others
// may have by now.
func (k *keeper) refuse(d digest.Digest) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.core.Owns(d.Prefix()) {
		return
	}
	if _, ok := k.refusals[d]; !ok && len(k.refusals) >= maxRefusals {
		k.core.Doubt(d.Prefix())
		return
	}
	k.refusals[d] = time.Now()
}

// note has d fetched from somebody.
func (k *keeper) note(d digest.Digest, touch uint32, holder cluster.DiskID, u repair.Urgency) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.core.Owns(d.Prefix()) {
		return false
	}
	ok := k.known.Note(time.Now(), d, touch, holder, u)
	wake(k.kick)
	return ok
}

// Lost has a copy replaced that the disk has dropped since it was corrupt.
func (k *keeper) lost(d digest.Digest) {
	k.note(d, uint32(time.Now().Unix()), cluster.DiskID{}, repair.Usual)
}

// drop forgets what need not be fetched any more.
func (k *keeper) drop(ds ...digest.Digest) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, d := range ds {
		k.known.Drop(d)
	}
}

// arrived forgets that d was to be fetched, or was refused.
func (k *keeper) arrived(d digest.Digest) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.known.Drop(d)
	delete(k.refusals, d)
}

// disk finds a disk, placed or leaving, by its id.
func (s *Store) disk(id cluster.DiskID) (placement.Disk, bool) {
	v := s.view()
	if i, ok := v.index[id]; ok {
		return v.disks[i], true
	}
	return placement.Disk{}, false
}

// skips are the disks that a writer has passed over.
type skips struct {
	all     map[cluster.DiskID]bool
	refused map[cluster.DiskID]bool // those that said so themselves
}

func skipsOf(all, refused [][]byte) skips { return skips{diskIDs(all), diskIDs(refused)} }

// appendTouches and touchAt are the wire's form of last uses.
func appendTouches(b []byte, t uint32) []byte { return binary.LittleEndian.AppendUint32(b, t) }

func touchAt(b []byte, i int) uint32 {
	if 4*i+4 > len(b) {
		return 0
	}
	return binary.LittleEndian.Uint32(b[4*i:])
}

var errLeaving = errors.New("the disk is being drained")

// refusal is why this disk takes no blobs now, or nil.
func (k *keeper) refusal() error {
	if k.leaves.Load() {
		return errors.Join(blob.ErrFull, errLeaving)
	}
	return nil
}
