package actioncache

import (
	"time"

	"google.golang.org/grpc/codes"

	"github.com/remex-build/terraform-provider-remex/daemon/cluster"
	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
	"github.com/remex-build/terraform-provider-remex/daemon/rpc"
)

const (
	// maxQueued bounds the bytes that wait for all journals together,
	// maxDiskQueued those for one disk. Beyond them an entry is not journaled
	// there, and counted as dropped.
	maxQueued     = 16 << 20
	maxDiskQueued = 4 << 20
	// batchBytes is about how much one append carries.
	batchBytes = 1 << 20
)

// queue is what waits to be appended to one disk's journal. What gathers while
// a batch is on its way travels in the next. A queue exists while it has
// entries, and with it the goroutine that empties it.
type queue struct {
	entries []*Entry
	bytes   int64
}

func (e *Entry) queueCost() int64 { return int64(len(e.Result)+len(e.Instance)) + entryCost }

// journal hands e to the disks that own its partition.
func (c *Client) journal(e *Entry) {
	owners := c.o.Placement.Table().Owners(e.Action.Prefix())
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, d := range owners {
		c.enqueueLocked(d.ID, e)
	}
}

func (c *Client) enqueueLocked(id cluster.DiskID, e *Entry) {
	q, cost := c.queues[id], e.queueCost()
	if c.ended || c.queued+cost > maxQueued || q != nil && q.bytes+cost > maxDiskQueued {
		c.metrics.journaled.WithLabelValues("dropped").Inc()
		return
	}
	if q == nil {
		q = new(queue)
		c.queues[id] = q
		c.startLocked(func() { c.empty(id, q) })
	}
	q.entries = append(q.entries, e)
	q.bytes += cost
	c.queued += cost
}

// take takes a batch off q, and ends q when nothing is left.
func (c *Client) take(id cluster.DiskID, q *queue) []*Entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	var n, size int
	for n < len(q.entries) && size < batchBytes {
		size += int(q.entries[n].queueCost())
		n++
	}
	batch := q.entries[:n:n]
	if q.entries = q.entries[n:]; n == 0 {
		delete(c.queues, id)
	}
	return batch
}

// taken gives back the room of a batch that is done with.
func (c *Client) taken(q *queue, batch []*Entry, result string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range batch {
		q.bytes -= e.queueCost()
		c.queued -= e.queueCost()
	}
	c.metrics.journaled.WithLabelValues(result).Add(float64(len(batch)))
}

// empty appends what is in q, batch by batch, and tries again for as long as
// the disk has its place. What is left when it loses it goes to those that own
// the entries now.
func (c *Client) empty(id cluster.DiskID, q *queue) {
	for {
		batch := c.take(id, q)
		if len(batch) == 0 {
			return
		}
		pause := 100 * time.Millisecond
		for {
			placed, err := c.appendTo(id, batch)
			if err == nil && placed {
				c.taken(q, batch, "ok")
				break
			}
			code := rpc.CodeOf(err)
			if !placed {
				c.taken(q, batch, "moved")
				for _, e := range batch {
					c.journal(e)
				}
				break
			}
			if c.ctx.Err() != nil || code == codes.ResourceExhausted || code == codes.InvalidArgument {
				c.taken(q, batch, "failed")
				c.log.Debug("entries not journaled", "disk", id, "entries", len(batch), "err", err)
				break
			}
			c.sleep(pause)
			pause = min(2*pause, 5*time.Second)
		}
	}
}

// appendTo makes one attempt; placed is false when placement has dropped the
// disk.
func (c *Client) appendTo(id cluster.DiskID, batch []*Entry) (placed bool, err error) {
	d, placed := c.o.Placement.Table().Disk(id)
	if !placed {
		return false, nil
	}
	if c.o.Journal != nil && id == c.o.Self.Disk {
		es := make([]Entry, len(batch))
		for i, e := range batch {
			es[i] = *e
		}
		return true, c.o.Journal.Append(es)
	}
	req := &pb.AcPutRequest{Entries: make([]*pb.AcEntry, len(batch))}
	for i, e := range batch {
		req.Entries[i] = toProto(e)
	}
	return true, c.send(d.Addr, pb.Method_METHOD_AC_APPEND, req)
}
