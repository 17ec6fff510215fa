package replica

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/blob/disk"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
)

// What lies on a disk of uploads that nobody works on.
const (
	parkedFor   = 10 * time.Minute
	parkedCount = 256
	// parkedShare is the part of the disk's capacity that they may take: each
	// keeps the room of the whole blob.
	parkedShare = 8
)

// partKey names an upload, under the digest that it is to have.
type partKey struct {
	UploadKey
	d digest.Digest
}

func uploadKey(k *pb.UploadKey) (partKey, digest.Digest, error) {
	d, err := one(k.GetDigest())
	return partKey{UploadKey{k.GetPrincipal(), k.GetInstance(), k.GetUuid()}, d}, d, err
}

// uploads are the partial uploads of which this disk is the first owner. A
// stream that works on one holds it alone; a newer stream of the same upload
// takes it over, since the older one's client has given it up.
type uploads struct {
	local  Disk
	count  int   // how many may lie parked
	budget int64 // how many bytes of room they may keep

	mu    sync.Mutex // guards everything below, and each parked's fields but w
	m     map[partKey]*parked
	bytes int64 // the room of those that lie parked
	ended bool
}

type parked struct {
	key    partKey
	w      *disk.Writer  // belongs to the stream at work, else to whoever holds mu
	size   int64         // w's offset when it was parked
	at     time.Time     // when it was parked
	taken  chan struct{} // closed to end the stream at work
	going  bool          // taken is closed
	idle   chan struct{} // closed when the stream at work has let go; nil if none is at work
	spoilt bool          // nothing can come of it any more; set by the stream at work
}

func newUploads(local Disk, reg prometheus.Registerer) *uploads {
	u := &uploads{local: local, count: parkedCount, budget: local.Stats().Capacity / parkedShare, m: make(map[partKey]*parked)}
	if reg != nil {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Namespace: "remex", Subsystem: "replica", Name: "parked_upload_bytes",
			Help: "Room kept for uploads that broke off and may be resumed.",
		}, func() float64 {
			u.mu.Lock()
			defer u.mu.Unlock()
			return float64(u.bytes)
		}))
	}
	return u
}

// parkGrace is how long a question for an upload waits for the stream at work
// on it, which may be about to notice that its client has gone.
const parkGrace = time.Second

// offset is how much of an upload lies parked.
func (u *uploads) offset(ctx context.Context, key partKey) int64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	p := u.m[key]
	if p != nil && p.idle != nil {
		idle := p.idle
		u.mu.Unlock()
		t := time.NewTimer(parkGrace)
		select {
		case <-idle:
		case <-ctx.Done():
		case <-t.C:
		}
		t.Stop()
		u.mu.Lock()
		p = u.m[key]
	}
	if p == nil || p.idle != nil {
		return 0
	}
	return p.size
}

// attach gives an upload to a stream, at offset off or beyond it. Offset 0
// begins anew. A stream that was at work on it has let go by then.
func (u *uploads) attach(ctx context.Context, key partKey, kind disk.Kind, off int64) (*parked, error) {
	if err := u.takeOver(ctx, key); err != nil {
		return nil, err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	p := u.m[key]
	switch {
	case u.ended || p != nil && p.idle != nil:
		return nil, fmt.Errorf("%w: another stream goes on with this upload", blob.ErrUnavailable)
	case p != nil && off > 0 && p.size >= off:
		u.bytes -= p.key.d.Size()
	case off > 0:
		return nil, fmt.Errorf("%w: no upload of %s has come to %d", blob.ErrUnavailable, key.d, off)
	default:
		u.dropLocked(p)
		w, err := u.local.Create(key.d, kind)
		if err != nil {
			return nil, err
		}
		p = &parked{key: key, w: w}
		u.m[key] = p
	}
	p.taken, p.idle = make(chan struct{}), make(chan struct{})
	return p, nil
}

// takeOver ends the stream at work on an upload, and waits until it lets go.
func (u *uploads) takeOver(ctx context.Context, key partKey) error {
	u.mu.Lock()
	p := u.m[key]
	if p == nil || p.idle == nil {
		u.mu.Unlock()
		return nil
	}
	idle := p.idle
	if !p.going {
		p.going = true
		close(p.taken)
	}
	u.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// detach parks an upload whose stream has ended, or forgets it when it is
// stored or spoilt.
func (u *uploads) detach(p *parked, stored bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	close(p.idle)
	p.idle, p.going = nil, false
	p.size, p.at = p.w.Offset(), time.Now()
	u.bytes += p.key.d.Size()
	if stored || p.spoilt || p.size == 0 || p.key.d.Size() > u.budget || u.ended {
		u.dropLocked(p)
		return
	}
	for u.bytes > u.budget || u.parkedLocked() > u.count {
		u.dropLocked(u.oldestLocked())
	}
}

func (u *uploads) parkedLocked() (n int) {
	for _, p := range u.m {
		if p.idle == nil {
			n++
		}
	}
	return n
}

func (u *uploads) oldestLocked() (oldest *parked) {
	for _, p := range u.m {
		if p.idle == nil && (oldest == nil || p.at.Before(oldest.at)) {
			oldest = p
		}
	}
	return oldest
}

// dropLocked forgets an upload that lies parked. (Closing its file is no I/O
// to speak of.)
func (u *uploads) dropLocked(p *parked) {
	if p == nil {
		return
	}
	u.bytes -= p.key.d.Size()
	delete(u.m, p.key)
	p.w.Close()
}

// run forgets what has lain for too long; in the end, everything.
func (u *uploads) run(ctx context.Context) {
	t := time.NewTicker(parkedFor / 10)
	defer t.Stop()
	for {
		select {
		case now := <-t.C:
			u.drop(func(p *parked) bool { return now.Sub(p.at) > parkedFor })
		case <-ctx.Done():
			u.mu.Lock()
			u.ended = true
			u.mu.Unlock()
			u.drop(func(*parked) bool { return true })
			return
		}
	}
}

func (u *uploads) drop(which func(*parked) bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, p := range u.m {
		if p.idle == nil && which(p) {
			u.dropLocked(p)
		}
	}
}
