package rpc

import (
	"context"
	"testing"
	"testing/synctest"
)

func TestOutboxGathersIntoBoundedFrames(t *testing.T) {
	o := newOutbox[int](nil)
	for i := range 5 {
		if !o.put(t.Context(), i, frameSize/3) {
			t.Fatal("no room")
		}
	}
	if got := o.take(nil); len(got) != 3 || got[0] != 0 {
		t.Errorf("the first frame is %v", got)
	}
	if got := o.take(nil); len(got) != 2 || got[1] != 4 {
		t.Errorf("the second frame is %v", got)
	}
	if got := o.take(nil); len(got) != 0 {
		t.Errorf("out of nowhere: %v", got)
	}
	o.put(t.Context(), 7, 100*queueSize) // alone, whatever its size
	if got := o.take(nil); len(got) != 1 {
		t.Errorf("got %v", got)
	}
}

func TestFullOutboxMakesWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		done := make(chan struct{})
		o := newOutbox[int](done)
		o.put(t.Context(), 1, queueSize)
		results := make(chan bool, 3)

		go func() { results <- o.put(t.Context(), 2, 1) }()
		synctest.Wait()
		o.push(3) // does not
		if len(results) != 0 {
			t.Error("there was room")
		}
		o.take(nil)
		if !<-results {
			t.Error("no room after a frame was taken")
		}

		o.take(nil)
		o.put(t.Context(), 1, queueSize)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { results <- o.put(ctx, 2, 1) }()
		synctest.Wait()
		cancel()
		if <-results {
			t.Error("queued for a caller that had gone")
		}
		go func() { results <- o.put(t.Context(), 2, 1) }()
		synctest.Wait()
		close(done)
		if <-results {
			t.Error("queued for a stream that had ended")
		}
	})
}

func TestBudgetIsFair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBudget(10)
		b.Acquire(t.Context(), 6)
		order := make(chan string, 2)
		go func() {
			b.Acquire(t.Context(), 100) // all of it
			order <- "large"
			b.Release(t.Context(), 100)
		}()
		synctest.Wait()
		go func() {
			b.Acquire(t.Context(), 1)
			order <- "small"
			b.Release(t.Context(), 1)
		}()
		synctest.Wait()
		b.Release(t.Context(), 6)
		if first := <-order; first != "large" {
			t.Errorf("%s was served first", first)
		}
		<-order
	})
}
