package wire_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/match"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/operation"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/queue"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/wire"
)

// passed is m after its journey.
func passed[M proto.Message](t *testing.T, m, into M) M {
	t.Helper()
	b, err := proto.Marshal(m)
	if err == nil {
		err = proto.Unmarshal(b, into)
	}
	if err != nil {
		t.Fatal(err)
	}
	return into
}

func check(t *testing.T, got, want any, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%T: %v", want, err)
	}
	opts := cmp.Options{cmpopts.EquateEmpty(), cmp.Comparer(func(a, b digest.Digest) bool { return a == b })}
	if d := cmp.Diff(want, got, opts); d != "" {
		t.Errorf("%T arrives changed (-want +got):\n%s", want, d)
	}
}

func TestJourney(t *testing.T) {
	at := time.Unix(1_700_000_000, 123)
	d := digest.Of(digest.BLAKE3, []byte("action"))
	ref := wire.Ref{Task: "operations/x", Attempt: 3}
	held := []wire.Held{{Ref: ref, Owner: "s", State: wire.Started, StartedAt: at, DoNotCache: true}}
	request := &wire.Request{
		Instance: "i", Scope: "s", Action: d, DoNotCache: true, Priority: -4, Invocation: "v", Principal: "p",
		Metadata: []byte("m"), Platform: []match.Property{{Name: "a", Value: "b"}}, Timeout: time.Minute, FirstOutput: "o",
		Near:       []wire.Near{{Worker: "w", Bytes: 1 << 40}, {Worker: "v", Bytes: 1}},
		ActionBlob: []byte("1"), CommandBlob: []byte("2"), RootBlob: []byte("3"),
	}
	for _, m := range []wire.FromWorker{
		wire.WorkerHello{ID: "w-1", Name: "w", To: "s", Pool: "p", Properties: map[string][]string{"a": {"b", "c"}}, Executors: 4, Attempts: held},
		wire.WorkerBeat{Running: 2, Heard: []wire.Heard{{Node: "s", Ago: 1500 * time.Millisecond}}},
		wire.Lend{Slot: 1, Seq: 2},
		wire.Recall{Slot: 1, Seq: 2},
		wire.Claim{ID: 7, Ahead: true},
		wire.Refuse{Ref: ref},
		wire.AttemptStarted{Ref: ref, At: at},
		wire.Done{Ref: ref, Response: []byte("r"), Code: codes.Internal, Message: "m"},
		wire.Withdrawn{Ref: ref},
		wire.Inventory{Of: "s", Term: 3, Attempts: held},
		wire.Fenced{Node: "s", Term: 3},
		wire.Disowned{Ref: ref, Owner: "s"},
		wire.Bye{},
	} {
		check(t, wire.DecodeFromWorker(passed(t, wire.EncodeFromWorker(m), &pb.WorkerItem{})), m, nil)
	}
	for _, m := range []wire.ToWorker{
		wire.SchedulerHello{ID: "s", Term: 4},
		wire.SchedulerBeat{},
		wire.Offer{Slot: 1, Seq: 2, Claim: 3, Task: &wire.Task{
			ID: "t", Attempt: 2, Instance: "i", Action: d, DoNotCache: true, Metadata: []byte("m"),
			ActionBlob: []byte("1"), CommandBlob: []byte("2"), RootBlob: []byte("3"), QueuedAt: at,
		}},
		wire.None{Claim: 1},
		wire.GiveBack{Slot: 1, Seq: 2},
		wire.Bid{Class: queue.Class{Priority: -1, Principal: 2, Invocation: 3, Arrived: 4}, Want: 5},
		wire.Kill{Ref: ref},
		wire.Withdraw{Ref: ref},
		wire.Ack{Ref: ref},
		wire.Own{Ref: ref, From: "s"},
		wire.Fence{Node: "s", Term: 2},
	} {
		got, err := wire.DecodeToWorker(passed(t, wire.EncodeToWorker(m), &pb.SchedulerItem{}))
		check(t, got, m, err)
	}
	keys := []operation.Key{{Instance: "i", Scope: 9, Action: d}}
	for _, m := range []wire.ToOwner{
		wire.CallerHello{ID: "s", Term: 1, To: "t"},
		wire.CallerBeat{Heard: []wire.Heard{{Node: "s", Ago: time.Second}}},
		wire.Submit{Call: 1, Op: 2, Name: "n", Except: "x", Hops: 3, Request: request},
		wire.Attach{Call: 1, Name: "n", Except: "x", Hops: 2},
		wire.Look{Call: 1, Name: "n", Except: "x", Hops: 2},
		wire.Cancel{Call: 1, Name: "n", Except: "x", Hops: 2},
		wire.Detach{Call: 1},
		wire.Keeps{Keys: keys},
		wire.Releases{Keys: keys},
		wire.Opened{},
	} {
		got, err := wire.DecodeToOwner(passed(t, wire.EncodeToOwner(m), &pb.CallerItem{}))
		check(t, got, m, err)
	}
	for _, m := range []wire.ToCaller{
		wire.OwnerHello{ID: "s", Term: 1},
		wire.OwnerBeat{},
		wire.Answer{Call: 1, Update: wire.Update{
			Name: "n", Action: d, Stage: wire.Executing, Worker: "w", QueuedAt: at, StartedAt: at, Done: true, Response: []byte("r"),
		}},
		wire.Answer{Call: 1, Update: wire.Update{Done: true, Err: &wire.Error{Status: codes.Unavailable, Text: "no"}}},
		wire.Gone{Call: 1},
		wire.NotMine{Call: 1},
		wire.OwnerFenced{Node: "s", Term: 1},
	} {
		got, err := wire.DecodeToCaller(passed(t, wire.EncodeToCaller(m), &pb.OwnerItem{}))
		check(t, got, m, err)
	}
}

func TestWhatIsMalformed(t *testing.T) {
	bad := []byte{1, 2, 3}
	if m, err := wire.DecodeToWorker(&pb.SchedulerItem{Item: &pb.SchedulerItem_Offer_{
		Offer: &pb.SchedulerItem_Offer{Task: &pb.WorkTask{Action: bad}},
	}}); err == nil {
		t.Errorf("an offer without an action is %+v", m)
	}
	if m, err := wire.DecodeToOwner(&pb.CallerItem{Item: &pb.CallerItem_Submit_{Submit: &pb.CallerItem_Submit{}}}); err == nil {
		t.Errorf("a call without a request is %+v", m)
	}
	if m, err := wire.DecodeToOwner(&pb.CallerItem{}); m != nil || err != nil {
		t.Errorf("an item of a newer version is %+v, %v", m, err)
	}
}

func TestOutbox(t *testing.T) {
	t.Run("what gathered goes in one frame, up to its size", func(t *testing.T) {
		o := wire.NewOutbox[wire.FromWorker]()
		big := wire.Done{Response: make([]byte, 3<<20)}
		for range 3 {
			o.Put(big)
		}
		if got := o.Take(nil); len(got) != 1 {
			t.Errorf("%d of 3 MiB in one frame", len(got))
		}
		o.Take(nil)
		o.Take(nil)
		for range 100 {
			o.Put(wire.Bye{})
		}
		if got := o.Take(nil); len(got) != 100 {
			t.Errorf("%d small ones in one frame", len(got))
		}
	})
	t.Run("it says when it is too far behind", func(t *testing.T) {
		o := wire.NewOutbox[wire.FromWorker]()
		n := 0
		for o.Put(wire.Done{Response: make([]byte, 16<<20)}) {
			n++
		}
		if n < 7 || n > 9 {
			t.Errorf("took %d of 16 MiB", n)
		}
	})
	t.Run("it says when all is sent", func(t *testing.T) {
		o := wire.NewOutbox[wire.FromWorker]()
		o.Put(wire.Bye{})
		sent := o.Sent()
		o.Take(nil)
		select {
		case <-sent:
			t.Error("before the writer came back")
		default:
		}
		o.Take(nil)
		<-sent
	})
}
