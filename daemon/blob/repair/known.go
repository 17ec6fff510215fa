package repair

import (
	"cmp"
	"container/heap"
	"slices"
	"time"

	"github.com/remex-build/terraform-provider-remex/daemon/cluster"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

// Urgency orders what is to be fetched, before the last use does.
type Urgency uint8

// The urgencies.
const (
	Usual  Urgency = iota
	Leaves         // a disk that drains has it
	Sole           // and nobody else does
)

// maxHolders is how many disks are remembered to have a blob.
const maxHolders = 4

// MaxKnown bounds what is remembered as still to fetch. A partition whose list
// does not fit does not settle before it does.
const MaxKnown = 1 << 20

// How long a blob that could not be fetched is left alone.
const (
	firstRetry = 500 * time.Millisecond
	lastRetry  = time.Minute
)

// Known is what this disk owns and has still to fetch.
type Known struct {
	m     map[digest.Digest]*wanted
	due   byUrgency
	later byTime
	bytes int64
	limit int
}

type wanted struct {
	d       digest.Digest
	touch   uint32
	urgency Urgency
	holders []cluster.DiskID
	noted   time.Time
	tries   int
	at      time.Time // not before
	in      queue
	index   int
}

type queue uint8

const (
	inDue queue = iota
	inLater
	inFlight
)

// NewKnown is empty, and holds at most limit blobs.
func NewKnown(limit int) *Known {
	return &Known{m: make(map[digest.Digest]*wanted), limit: limit}
}

// Note has a blob fetched that holder has; the zero DiskID is somebody. It
// reports whether there was room to remember it.
func (k *Known) Note(now time.Time, d digest.Digest, touch uint32, holder cluster.DiskID, u Urgency) bool {
	w := k.m[d]
	if w == nil {
		if len(k.m) >= k.limit {
			return false
		}
		w = &wanted{d: d, noted: now}
		k.m[d] = w
		k.bytes += d.Size()
		heap.Push(&k.due, w)
	}
	w.add(holder)
	if touch > w.touch || u > w.urgency {
		w.touch, w.urgency = max(touch, w.touch), max(u, w.urgency)
		if w.in == inDue {
			heap.Fix(&k.due, w.index)
		}
	}
	return true
}

func (w *wanted) add(holder cluster.DiskID) {
	if holder == (cluster.DiskID{}) || len(w.holders) >= maxHolders || slices.Contains(w.holders, holder) {
		return
	}
	w.holders = append(w.holders, holder)
}

// Has reports whether d is to be fetched.
func (k *Known) Has(d digest.Digest) bool { return k.m[d] != nil }

// Len and Bytes are how much is to be fetched.
func (k *Known) Len() int { return len(k.m) }

// Bytes are the sizes of all that is to be fetched.
func (k *Known) Bytes() int64 { return k.bytes }

// Fetch is one blob to be fetched now.
type Fetch struct {
	Digest  digest.Digest
	Touch   uint32
	Holders []cluster.DiskID // none: everyone is to be asked
	Tries   int
}

// Next is the most urgent of what is due, as long as the sizes together are at
// most bytes, or one blob. They are in flight until Done, Failed or Drop.
func (k *Known) Next(now time.Time, bytes int64, n int) (fs []Fetch) {
	for len(k.later) > 0 && !k.later[0].at.After(now) {
		w := heap.Pop(&k.later).(*wanted)
		heap.Push(&k.due, w)
	}
	for len(fs) < n && len(k.due) > 0 {
		w := k.due[0]
		if bytes -= w.d.Size(); bytes < 0 && len(fs) > 0 {
			break
		}
		heap.Pop(&k.due)
		w.in = inFlight
		fs = append(fs, Fetch{w.d, w.touch, append([]cluster.DiskID(nil), w.holders...), w.tries})
	}
	return fs
}

// Failed has d tried again later. The holders in not don't have it any more.
func (k *Known) Failed(now time.Time, d digest.Digest, not ...cluster.DiskID) {
	w := k.m[d]
	if w == nil || w.in != inFlight {
		return
	}
	for _, id := range not {
		w.holders = slices.DeleteFunc(w.holders, func(h cluster.DiskID) bool { return h == id })
	}
	w.at = now.Add(min(firstRetry<<min(w.tries, 10), lastRetry))
	w.tries++
	heap.Push(&k.later, w)
}

// Drop forgets d: it is here, or nobody has it.
func (k *Known) Drop(d digest.Digest) {
	w := k.m[d]
	if w == nil {
		return
	}
	delete(k.m, d)
	k.bytes -= d.Size()
	switch w.in {
	case inDue:
		heap.Remove(&k.due, w.index)
	case inLater:
		heap.Remove(&k.later, w.index)
	}
}

// Keep forgets all that keep does not want kept.
func (k *Known) Keep(keep func(d digest.Digest) bool) {
	for d := range k.m {
		if !keep(d) {
			k.Drop(d)
		}
	}
}

// Oldest is when the first of what is still to fetch was noted; zero if there
// is nothing. It looks at all.
func (k *Known) Oldest() (at time.Time) {
	for _, w := range k.m {
		if at.IsZero() || w.noted.Before(at) {
			at = w.noted
		}
	}
	return at
}

// byUrgency has the most urgent first, then the most recently used.
type byUrgency []*wanted

func (q byUrgency) Len() int { return len(q) }
func (q byUrgency) Less(i, j int) bool {
	return cmp.Or(cmp.Compare(q[j].urgency, q[i].urgency), cmp.Compare(q[j].touch, q[i].touch)) < 0
}
func (q byUrgency) Swap(i, j int) { q[i], q[j] = q[j], q[i]; q[i].index, q[j].index = i, j }
func (q *byUrgency) Push(x any) {
	w := x.(*wanted)
	w.in, w.index = inDue, len(*q)
	*q = append(*q, w)
}

func (q *byUrgency) Pop() any {
	w := (*q)[len(*q)-1]
	(*q)[len(*q)-1] = nil
	*q = (*q)[:len(*q)-1]
	return w
}

// byTime has the first that is due again first.
type byTime []*wanted

func (q byTime) Len() int           { return len(q) }
func (q byTime) Less(i, j int) bool { return q[i].at.Before(q[j].at) }
func (q byTime) Swap(i, j int)      { q[i], q[j] = q[j], q[i]; q[i].index, q[j].index = i, j }
func (q *byTime) Push(x any) {
	w := x.(*wanted)
	w.in, w.index = inLater, len(*q)
	*q = append(*q, w)
}

func (q *byTime) Pop() any {
	w := (*q)[len(*q)-1]
	(*q)[len(*q)-1] = nil
	*q = (*q)[:len(*q)-1]
	return w
}
