package replica

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/blob/disk"
	"github.com/remex-build/terraform-provider-remex/daemon/blob/repair"
	"github.com/remex-build/terraform-provider-remex/daemon/cluster"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

// The bounds of what is fetched at a time.
const (
	maxWindow = 16 << 20 // bytes of blobs
	minWindow = 256 << 10
	maxFetch  = 2048 // blobs
	// fetchStreams is how many large blobs come at once.
	fetchStreams = 4
)

// pace is how much is fetched at a time: more while the others answer as fast as
// they ever did, less when they don't.
type pace struct {
	mu     sync.Mutex // guards everything below
	window int64
	floor  time.Duration // the fastest answer, which is forgotten slowly
	recent time.Duration
}

func (p *pace) init() { p.window = 4 << 20 }

// slack is what an answer may take longer than the fastest before that is taken
// for a sign of work.
const slack = 3 * time.Millisecond

// sample takes in how long a probe took.
func (p *pace) sample(took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.floor == 0 || took < p.floor {
		p.floor = took
	}
	p.floor += p.floor / 256
	p.recent = (3*p.recent + took) / 4
	if p.recent > 3*p.floor+slack {
		p.window = max(p.window/2, minWindow)
	} else {
		p.window = min(p.window+p.window/4, maxWindow)
	}
}

func (p *pace) get() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.window
}

// busy is for how long to rest after a step that took d: as long as it took
// while others wait, not at all otherwise.
func (p *pace) busy(d time.Duration) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.window > minWindow {
		return 0
	}
	return min(4*d, time.Second)
}

// refill fetches what is known and not here, the most urgent first.
func (k *keeper) refill(ctx context.Context) {
	every(ctx, firstRefill, k.kick, func() {
		for ctx.Err() == nil {
			k.mu.Lock()
			fs := k.known.Next(time.Now(), k.pace.get(), maxFetch)
			k.mu.Unlock()
			if len(fs) == 0 {
				return
			}
			start := time.Now()
			k.fetch(ctx, fs)
			if rest := k.pace.busy(time.Since(start)); rest > 0 {
				select {
				case <-ctx.Done():
				case <-time.After(rest):
				}
			}
		}
	})
}

const firstRefill = 250 * time.Millisecond

// fetch brings blobs here, those of one holder together.
func (k *keeper) fetch(ctx context.Context, fs []repair.Fetch) {
	groups := make(map[cluster.DiskID][]repair.Fetch)
	var large []repair.Fetch
	for _, f := range fs {
		switch {
		case len(f.Holders) == 0:
			groups[cluster.DiskID{}] = append(groups[cluster.DiskID{}], f)
		case f.Digest.Size() > blob.SmallSize:
			large = append(large, f)
		default:
			h := f.Holders[f.Tries%len(f.Holders)]
			groups[h] = append(groups[h], f)
		}
	}
	var wg sync.WaitGroup
	for id, g := range groups {
		wg.Go(func() {
			if id == (cluster.DiskID{}) {
				k.seek(ctx, g)
				return
			}
			for len(g) > 0 {
				n, size := 0, int64(0)
				for n < len(g) && (n == 0 || size+g[n].Digest.Size()+getOverhead <= maxBatch) {
					size += g[n].Digest.Size() + getOverhead
					n++
				}
				k.fetchSmall(ctx, id, g[:n], size)
				g = g[n:]
			}
		})
	}
	streams := make(chan struct{}, fetchStreams)
	for _, f := range large {
		streams <- struct{}{}
		wg.Go(func() {
			defer func() { <-streams }()
			k.fetchLarge(ctx, f.Holders[f.Tries%len(f.Holders)], f)
		})
	}
	wg.Wait()
}

// fetchSmall brings small blobs from one holder, in one message.
func (k *keeper) fetchSmall(ctx context.Context, id cluster.DiskID, fs []repair.Fetch, size int64) {
	fs = k.still(fs)
	if len(fs) == 0 {
		return
	}
	from, ok := k.s.disk(id)
	if !ok {
		k.failed(fs, id)
		return
	}
	if k.limit.WaitN(ctx, int(size)) != nil {
		k.failed(fs)
		return
	}
	ds := make([]digest.Digest, len(fs))
	for i, f := range fs {
		ds[i] = f.Digest
	}
	rs, err := k.s.getFrom(ctx, from.Addr, ds)
	if err != nil {
		k.failed(fs)
		return
	}
	var bs []blob.Blob
	var touches []uint32
	var got []repair.Fetch
	for i, r := range rs {
		switch {
		case r.Err == nil:
			bs, touches, got = append(bs, blob.Blob{Digest: ds[i], Data: r.Data}), append(touches, fs[i].Touch), append(got, fs[i])
		case blob.IsNotFound(r.Err), errors.Is(r.Err, errCorrupt):
			k.failed(fs[i:i+1], id)
		default:
			k.failed(fs[i : i+1])
		}
	}
	for i, err := range k.local.Restore(ctx, bs, touches) {
		k.fetched(got[i], id, err)
	}
}

func (k *keeper) fetchLarge(ctx context.Context, id cluster.DiskID, f repair.Fetch) {
	if len(k.still([]repair.Fetch{f})) == 0 {
		return
	}
	from, ok := k.s.disk(id)
	if !ok {
		k.failed([]repair.Fetch{f}, id)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, transferTimeout(f.Digest.Size()))
	defer cancel()
	src, err := k.s.openRemote(ctx, from.Addr, f.Digest, 0)
	if err == nil {
		err = k.local.RestoreFrom(ctx, f.Digest, &paced{ctx, src, k}, f.Touch)
		src.Close()
	}
	k.fetched(f, id, err)
}

// paced reads no faster than repair may.
type paced struct {
	ctx context.Context
	src *remoteSource
	k   *keeper
}

func (p *paced) Read(b []byte) (int, error) {
	n, err := p.src.Read(b[:min(len(b), chunkSize)])
	if n > 0 {
		if werr := p.k.limit.WaitN(p.ctx, n); werr != nil {
			return n, werr
		}
	}
	return n, err
}

// fetched takes down what became of a fetch.
func (k *keeper) fetched(f repair.Fetch, from cluster.DiskID, err error) {
	switch {
	case err == nil:
		k.drop(f.Digest)
		k.m.fetched.Inc()
		k.m.fetchedBytes.Add(float64(f.Digest.Size()))
	case blob.IsNotFound(err), errors.Is(err, blob.ErrMismatch), errors.Is(err, errCorrupt):
		k.failed([]repair.Fetch{f}, from)
	default:
		k.s.log.Debug("not fetched", "digest", f.Digest, "err", err)
		k.failed([]repair.Fetch{f})
	}
}

// still is what of fs has not come another way meanwhile.
func (k *keeper) still(fs []repair.Fetch) []repair.Fetch {
	ds := make([]digest.Digest, len(fs))
	for i, f := range fs {
		ds[i] = f.Digest
	}
	left := make([]repair.Fetch, 0, len(fs))
	for i, p := range k.local.Presence(ds, false) {
		if p != disk.Present {
			left = append(left, fs[i])
			continue
		}
		k.local.SetKind(ds[i], disk.Owned)
		k.drop(ds[i])
	}
	return left
}

// failed has fs tried again later. The holders in not don't have them.
func (k *keeper) failed(fs []repair.Fetch, not ...cluster.DiskID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, f := range fs {
		k.known.Failed(time.Now(), f.Digest, not...)
	}
}

// seek asks everyone for what nobody is known to have. What is certain to be
// nowhere is forgotten.
func (k *keeper) seek(ctx context.Context, fs []repair.Fetch) {
	if fs = k.still(fs); len(fs) == 0 {
		return
	}
	ds := make([]digest.Digest, len(fs))
	for i, f := range fs {
		ds[i] = f.Digest
	}
	v := k.s.view()
	a := k.s.find(ctx, v, ds, question{held: true, everyone: true})
	for i, f := range fs {
		h := a.holders[i]
		for _, on := range h.at[:h.n] {
			if on != v.self {
				k.note(f.Digest, f.Touch, v.disks[on].ID, repair.Usual)
			}
		}
		if h.n == 0 && a.nobody(i) {
			k.m.gone.Inc()
			k.s.log.Warn("a blob that was known is nowhere any more", "digest", f.Digest)
			k.drop(f.Digest)
		}
	}
	k.failed(fs)
	wake(k.kick)
}
