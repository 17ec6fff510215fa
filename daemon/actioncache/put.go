package actioncache

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/remex-build/terraform-provider-remex/daemon/cluster"
	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
	"github.com/remex-build/terraform-provider-remex/daemon/rpc"
)

const (
	// putWait is how long Put waits for the slower schedulers when one has the
	// entry.
	putWait = 200 * time.Millisecond
	// maxSending bounds the entries on their way to schedulers. Beyond it Put
	// waits.
	maxSending = 1024
	// sendFor bounds one attempt to send.
	sendFor = 5 * time.Second
)

// sendAgain are the pauses between attempts to reach a scheduler. One that
// stays away longer lists what it missed when it is back.
var sendAgain = []time.Duration{100 * time.Millisecond, 400 * time.Millisecond, time.Second, 3 * time.Second}

// sent is what became of an entry at one scheduler: first is set for its first
// attempt, last when no other follows.
type sent struct {
	err         error
	first, last bool
}

// Put stores the result of k on its schedulers. It returns when those that
// answer within 200 ms have it, and at least one; the others, and the journals
// on the disks, get it behind the caller's back. After an error the entry may
// be stored all the same. result must not change any more.
func (c *Client) Put(ctx context.Context, k Key, result []byte) error {
	err := c.put(ctx, k, result)
	outcome := "ok"
	if err != nil {
		outcome = "error"
	}
	c.metrics.puts.WithLabelValues(outcome).Inc()
	return err
}

func (c *Client) put(ctx context.Context, k Key, result []byte) error {
	if err := k.check(); err != nil {
		return err
	}
	if len(result) > MaxResult {
		return fmt.Errorf("%w: %d bytes for action %s", ErrTooLarge, len(result), k.Action)
	}
	e := &Entry{Key: k, Stamp: c.clock.Next(), Writer: c.o.Self.ID, Result: result}
	r := c.ring()
	owners := r.owners(k, c.o.Replicas)
	answers := make(chan sent, len(owners)*(len(sendAgain)+1))
	waiting := 0
	req := &pb.AcPutRequest{Entries: []*pb.AcEntry{toProto(e)}}
	for _, i := range owners {
		if i == r.self && c.o.Memory != nil {
			c.o.Memory.Put(*e)
			answers <- sent{first: true, last: true}
			waiting++
			continue
		}
		select {
		case c.sending <- struct{}{}:
		case <-ctx.Done():
			return fmt.Errorf("store result of action %s: %w", k.Action, ctx.Err())
		}
		m := &r.members[i]
		if !c.start(func() {
			defer func() { <-c.sending }()
			c.deliver(m, req, answers)
		}) {
			<-c.sending
			break
		}
		waiting++
	}
	if err := await(ctx, answers, waiting); err != nil {
		return fmt.Errorf("store result of action %s: %w", k.Action, err)
	}
	c.journal(e)
	return nil
}

// await waits for the answers of n schedulers, as Put promises.
func await(ctx context.Context, answers <-chan sent, n int) error {
	late := time.NewTimer(putWait)
	defer late.Stop()
	firsts, ended, ok := 0, 0, false
	waited := false
	var errs []error
	for {
		switch {
		case ok && (firsts == n || waited):
			return nil
		case n == 0:
			return ErrNoOwner
		case ended == n:
			return fmt.Errorf("%w: %w", ErrNoOwner, errors.Join(errs...))
		}
		select {
		case a := <-answers:
			if a.first {
				firsts++
			}
			if a.last {
				ended++
			}
			if a.err == nil {
				ok = true
			} else if a.last {
				errs = append(errs, a.err)
			}
		case <-late.C:
			waited = true
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// deliver sends req to a scheduler until it has it, has left, refuses it, or
// has been tried often enough.
func (c *Client) deliver(m *cluster.Member, req *pb.AcPutRequest, answers chan<- sent) {
	for try := 0; ; try++ {
		err := c.send(m.Addr, pb.Method_METHOD_AC_PUT, req)
		code := rpc.CodeOf(err)
		last := err == nil || try == len(sendAgain) || c.ctx.Err() != nil ||
			code == codes.InvalidArgument || code == codes.Unimplemented || !c.present(m.ID)
		answers <- sent{err: err, first: try == 0, last: last}
		if last {
			return
		}
		c.sleep(sendAgain[try])
	}
}

func (c *Client) present(id string) bool {
	return slices.ContainsFunc(c.ring().members, func(m cluster.Member) bool { return m.ID == id })
}

// send makes one attempt, in the client's life rather than a caller's.
func (c *Client) send(addr string, method pb.Method, req *pb.AcPutRequest) error {
	ctx, cancel := context.WithTimeout(c.ctx, sendFor)
	defer cancel()
	if err := c.o.Peers.Call(ctx, addr, method, req, new(pb.AcPutResponse)); err != nil {
		return fmt.Errorf("send action-cache entries to %s: %w", addr, err)
	}
	return nil
}

// sleep lasts d, or until the client ends.
func (c *Client) sleep(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-c.ctx.Done():
	}
}
