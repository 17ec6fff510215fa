package rpc

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/stats"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// A large answer counts until the client has taken it, or is gone.
func TestHeldUntilSent(t *testing.T) {
	const size = 1 << 20 // far more than flow control lets go unread
	for _, c := range []struct {
		name string
		then func(t *testing.T, s grpc.ClientStream, cancel func(), conn *grpc.ClientConn)
	}{
		{"read", func(t *testing.T, s grpc.ClientStream, _ func(), _ *grpc.ClientConn) {
			var got wrapperspb.BytesValue
			if err := s.RecvMsg(&got); err != nil || len(got.Value) != size {
				t.Errorf("%d bytes, %v", len(got.Value), err)
			}
		}},
		{"cancelled", func(_ *testing.T, _ grpc.ClientStream, cancel func(), _ *grpc.ClientConn) { cancel() }},
		{"disconnected", func(_ *testing.T, _ grpc.ClientStream, _ func(), conn *grpc.ClientConn) { conn.Close() }},
	} {
		t.Run(c.name, func(t *testing.T) {
			var released atomic.Int32
			returned := make(chan struct{}, 1)
			s := grpc.NewServer(append(PublicServerOptions(StreamWindow), grpc.UnknownServiceHandler(func(_ any, ss grpc.ServerStream) error {
				defer func() { returned <- struct{}{} }()
				return ss.SendMsg(Hold(ss.Context(), wrapperspb.Bytes(make([]byte, size)), func() { released.Add(1) }))
			}))...)
			lis, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			go s.Serve(lis)
			defer s.Stop()
			conn, err := grpc.NewClient("passthrough:///"+lis.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/any/Method")
			if err != nil {
				t.Fatal(err)
			}
			<-returned
			time.Sleep(20 * time.Millisecond)
			if released.Load() != 0 {
				t.Fatal("released while the client has read nothing")
			}
			c.then(t, stream, cancel, conn)
			for i := 0; released.Load() == 0 && i < 5000; i++ {
				time.Sleep(time.Millisecond)
			}
			if n := released.Load(); n != 1 {
				t.Errorf("released %d times", n)
			}
		})
	}
}

func TestHoldOnAConnectionThatEnded(t *testing.T) {
	var calls connections
	ctx := calls.TagConn(t.Context(), nil)
	connOf(ctx).end()
	released := 0
	Hold(ctx, &wrapperspb.BytesValue{}, func() { released++ })
	if released != 1 {
		t.Errorf("released %d times", released)
	}
}

// gRPC drops a message without a word that it is given when its call was reset.
func TestHoldOfACallThatWasReset(t *testing.T) {
	var calls connections
	ctx, reset := context.WithCancel(calls.TagConn(t.Context(), nil))
	released := 0
	m := Hold(ctx, &wrapperspb.BytesValue{}, func() { released++ })
	calls.HandleRPC(ctx, &stats.OutPayload{Payload: m})
	if released != 0 {
		t.Fatal("released while the message is on its way")
	}
	reset()
	calls.HandleRPC(ctx, &stats.OutPayload{Payload: m})
	if released != 1 || len(connOf(ctx).held) > 0 {
		t.Errorf("released %d times", released)
	}
}

// What was taken without waiting is made up for before anybody else gets more.
func TestBudgetDebts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tag connections
		one, two := tag.TagConn(t.Context(), nil), tag.TagConn(t.Context(), nil)
		b := NewBudget(100)
		b.Take(one, 150)
		granted := false
		go func() { granted = b.Acquire(two, 10) == nil }()
		synctest.Wait()
		b.Release(one, 55)
		synctest.Wait()
		if granted {
			t.Fatal("granted from a debt")
		}
		b.Release(one, 35)
		synctest.Wait()
		if !granted {
			t.Fatal("not granted from what there is")
		}
		b.Release(two, 10)
		b.Release(one, 60)
		if b.free != 100 || len(b.lines) > 0 || len(b.turns) > 0 {
			t.Errorf("%d free, %d lines, %d turns", b.free, len(b.lines), len(b.turns))
		}
	})
}

// One connection gets a fifth, whatever it asks for, and others go on.
func TestBudgetIsSharedByConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tag connections
		greedy, modest := tag.TagConn(t.Context(), nil), tag.TagConn(t.Context(), nil)
		b := NewBudget(100)
		var got atomic.Int32
		for range 10 {
			go func() {
				if b.Acquire(greedy, 6) == nil {
					got.Add(1)
				}
			}()
		}
		synctest.Wait()
		if n := got.Load(); n != 3 {
			t.Fatalf("one connection got %d sixes of a hundred", n)
		}
		if err := b.Acquire(modest, 20); err != nil {
			t.Fatal(err)
		}
		if err := b.Acquire(t.Context(), 62); err != nil { // the node's own work has no limit
			t.Fatal(err)
		}
		b.Release(modest, 20)
		b.Release(t.Context(), 62)
		for i := int32(3); i < 10; i++ {
			b.Release(greedy, 6)
			synctest.Wait()
			if n := got.Load(); n != i+1 {
				t.Fatalf("after %d releases it had got %d", i-2, n)
			}
		}
		b.Release(greedy, 18)
		if b.free != 100 || len(b.lines) > 0 || len(b.turns) > 0 {
			t.Errorf("%d free, %d lines, %d turns", b.free, len(b.lines), len(b.turns))
		}
	})
}

// However many take what they can get and give nothing back, something is left
// for the next, also behind one that asks for more than that.
func TestBudgetIsNeverUsedUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer synctest.Wait()
		defer cancel()
		var tag connections
		b := NewBudget(64 << 20)
		for range 16 {
			greedy := tag.TagConn(ctx, nil)
			for range 100 {
				go b.Acquire(greedy, 256<<10)
			}
			go b.Acquire(greedy, 4<<20)
		}
		go b.Acquire(tag.TagConn(ctx, nil), 8<<20)
		synctest.Wait()
		modest := tag.TagConn(ctx, nil)
		for range 100 {
			short, stop := context.WithTimeout(modest, time.Second)
			if err := b.Acquire(short, 64<<10); err != nil {
				t.Fatalf("with %d KiB free: %v", b.free>>10, err)
			}
			stop()
			b.Release(modest, 64<<10)
		}
	})
}

// More than a connection may hold is granted when nobody holds anything.
func TestBudgetGrantsLargeDemands(t *testing.T) {
	var tag connections
	ctx := tag.TagConn(t.Context(), nil)
	b := NewBudget(100)
	for _, n := range []int64{60, 1000} {
		if err := b.Acquire(ctx, n); err != nil {
			t.Fatal(err)
		}
		short, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
		if b.Acquire(short, 1) == nil {
			t.Errorf("more was granted beside %d", n)
		}
		cancel()
		b.Release(ctx, n)
	}
	if b.free != 100 || len(b.lines) > 0 || len(b.turns) > 0 {
		t.Errorf("%d free, %d lines, %d turns", b.free, len(b.lines), len(b.turns))
	}
}
