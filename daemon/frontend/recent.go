package frontend

import (
	"container/list"
	"sync"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

// recentBytes bounds what recent keeps: the actions and commands of a build of
// thousands, and the outputs that its clients fetch.
const recentBytes = 16 << 20

// recent remembers the small blobs that passed through last. A client uploads
// an action and its command just before it asks to execute them, over the same
// connection: remembered here, they need not be read back from the workers,
// which would take two round trips of each execution. And what one client of a
// build fetches others do, too. Blobs are immutable, so that what is remembered
// is always right.
type recent struct {
	mu    sync.Mutex // guards everything below
	bytes int
	byAge list.List // of blob.Blob, the latest used first
	at    map[digest.Digest]*list.Element
}

// add remembers b, whose digest has been verified, and which nobody changes.
func (r *recent) add(b blob.Blob) {
	if len(b.Data) == 0 || len(b.Data) > blob.SmallSize {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if e, ok := r.at[b.Digest]; ok {
		r.byAge.MoveToFront(e)
		return
	}
	if r.at == nil {
		r.at = make(map[digest.Digest]*list.Element)
	}
	r.at[b.Digest] = r.byAge.PushFront(b)
	for r.bytes += weight(b); r.bytes > recentBytes; {
		oldest := r.byAge.Remove(r.byAge.Back()).(blob.Blob)
		delete(r.at, oldest.Digest)
		r.bytes -= weight(oldest)
	}
}

// weight is b's bytes with what it costs to remember them.
func weight(b blob.Blob) int { return len(b.Data) + 384 }

func (r *recent) get(d digest.Digest) ([]byte, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e, ok := r.at[d]
	if !ok {
		return nil, false
	}
	r.byAge.MoveToFront(e)
	return e.Value.(blob.Blob).Data, true
}
