package rpc

import (
	"errors"
	"io"
	"runtime"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
)

// send is the stream's writer. It returns when the stream has broken, when the
// caller has closed it and everything is answered, or when the Mux closes.
func (a *answering) send(send func(*pb.AnswerFrame) error, received <-chan error) error {
	var (
		frame   pb.AnswerFrame
		closing = a.mux.closing
		grace   <-chan time.Time
		last    error // what to return once everything is answered
		ending  bool
	)
	for {
		frame.Answers = a.out.take(frame.Answers[:0])
		if len(frame.Answers) > 0 {
			if err := send(&frame); err != nil {
				return err
			}
			clear(frame.Answers)
			continue
		}
		if ending && a.idleNow() {
			return last
		}
		select {
		case <-a.out.wake:
			runtime.Gosched() // whatever is about to be answered, travels along
		case err := <-received:
			if !errors.Is(err, io.EOF) {
				return err
			}
			ending, received = true, nil
		case <-closing:
			a.refuse()
			ending, closing = true, nil
			last = status.Error(codes.Unavailable, "shutting down")
			timer := time.NewTimer(closeGrace)
			defer timer.Stop()
			grace = timer.C
		case <-grace:
			return last
		case <-a.ctx.Done():
			return a.ctx.Err()
		}
	}
}

// refuse makes the stream accept no more calls.
func (a *answering) refuse() {
	a.mu.Lock()
	a.closed = true
	a.mu.Unlock()
}

// idleNow reports whether nothing runs and nothing waits to be sent.
func (a *answering) idleNow() bool {
	a.mu.Lock()
	n := len(a.running)
	a.mu.Unlock()
	if n > 0 {
		return false
	}
	a.out.mu.Lock()
	defer a.out.mu.Unlock()
	return len(a.out.items) == 0
}

// wait waits for the goroutines of a stream that has ended.
func (a *answering) wait() {
	a.refuse()
	a.idle.Wait()
}
