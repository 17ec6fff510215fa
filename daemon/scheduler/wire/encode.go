package wire

import (
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/match"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/operation"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/queue"
)

// nanos and instant carry times; the zero time is 0.
func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func instant(ns int64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns)
}

func ref(r Ref) *pb.AttemptRef { return &pb.AttemptRef{Task: r.Task, Attempt: r.Attempt} }

func unref(r *pb.AttemptRef) Ref { return Ref{Task: r.GetTask(), Attempt: r.GetAttempt()} }

func unpack(b []byte) (digest.Digest, error) {
	d, rest, err := digest.Next(b)
	if err == nil && len(rest) > 0 {
		err = fmt.Errorf("%w: %d bytes too many", digest.ErrMalformed, len(rest))
	}
	return d, err
}

func heldToWire(hs []Held) []*pb.HeldAttempt {
	out := make([]*pb.HeldAttempt, len(hs))
	for i, h := range hs {
		out[i] = &pb.HeldAttempt{
			Ref: ref(h.Ref), Owner: h.Owner, State: pb.AttemptState(h.State),
			StartedUnixNs: nanos(h.StartedAt), DoNotCache: h.DoNotCache,
		}
	}
	return out
}

func heldFromWire(hs []*pb.HeldAttempt) []Held {
	out := make([]Held, len(hs))
	for i, h := range hs {
		out[i] = Held{
			Ref: unref(h.GetRef()), Owner: h.GetOwner(), State: AttemptState(h.GetState()),
			StartedAt: instant(h.GetStartedUnixNs()), DoNotCache: h.GetDoNotCache(),
		}
	}
	return out
}

func heardToWire(hs []Heard) []*pb.WorkerItem_Beat_Heard {
	out := make([]*pb.WorkerItem_Beat_Heard, len(hs))
	for i, h := range hs {
		out[i] = &pb.WorkerItem_Beat_Heard{Node: h.Node, AgoMs: uint32(h.Ago.Milliseconds())}
	}
	return out
}

func heardFromWire(hs []*pb.WorkerItem_Beat_Heard) []Heard {
	out := make([]Heard, len(hs))
	for i, h := range hs {
		out[i] = Heard{Node: h.GetNode(), Ago: time.Duration(h.GetAgoMs()) * time.Millisecond}
	}
	return out
}

// EncodeFromWorker is m as it travels.
func EncodeFromWorker(m FromWorker) *pb.WorkerItem {
	switch m := m.(type) {
	case WorkerHello:
		h := &pb.WorkerItem_Hello{
			Id: m.ID, Name: m.Name, Pool: m.Pool, Executors: uint32(m.Executors), Attempts: heldToWire(m.Attempts), To: m.To,
		}
		for name, values := range m.Properties {
			h.Properties = append(h.Properties, &pb.WorkerProperty{Name: name, Values: values})
		}
		return &pb.WorkerItem{Item: &pb.WorkerItem_Hello_{Hello: h}}
	case WorkerBeat:
		return &pb.WorkerItem{Item: &pb.WorkerItem_Beat_{Beat: &pb.WorkerItem_Beat{
			Running: uint32(m.Running), Heard: heardToWire(m.Heard),
		}}}
	case Lend:
		return &pb.WorkerItem{Item: &pb.WorkerItem_Lend_{Lend: &pb.WorkerItem_Lend{Slot: m.Slot, Seq: m.Seq}}}
	case Recall:
		return &pb.WorkerItem{Item: &pb.WorkerItem_Recall_{Recall: &pb.WorkerItem_Recall{Slot: m.Slot, Seq: m.Seq}}}
	case Claim:
		return &pb.WorkerItem{Item: &pb.WorkerItem_Claim_{Claim: &pb.WorkerItem_Claim{Id: m.ID, Ahead: m.Ahead}}}
	case Refuse:
		return &pb.WorkerItem{Item: &pb.WorkerItem_Refuse_{Refuse: &pb.WorkerItem_Refuse{Ref: ref(m.Ref)}}}
	case AttemptStarted:
		return &pb.WorkerItem{Item: &pb.WorkerItem_Started_{Started: &pb.WorkerItem_Started{
			Ref: ref(m.Ref), AtUnixNs: nanos(m.At),
		}}}
	case Done:
		return &pb.WorkerItem{Item: &pb.WorkerItem_Done_{Done: &pb.WorkerItem_Done{
			Ref: ref(m.Ref), Response: m.Response, Code: uint32(m.Code), Message: m.Message,
		}}}
	case Withdrawn:
		return &pb.WorkerItem{Item: &pb.WorkerItem_Withdrawn_{Withdrawn: &pb.WorkerItem_Withdrawn{Ref: ref(m.Ref)}}}
	case Inventory:
		return &pb.WorkerItem{Item: &pb.WorkerItem_Inventory_{Inventory: &pb.WorkerItem_Inventory{
			Of: m.Of, Term: m.Term, Attempts: heldToWire(m.Attempts),
		}}}
	case Fenced:
		return &pb.WorkerItem{Item: &pb.WorkerItem_Fenced{Fenced: &pb.SchedulerFence{Node: m.Node, Term: m.Term}}}
	case Disowned:
		return &pb.WorkerItem{Item: &pb.WorkerItem_Disowned_{Disowned: &pb.WorkerItem_Disowned{Ref: ref(m.Ref), Owner: m.Owner}}}
	case Bye:
		return &pb.WorkerItem{Item: &pb.WorkerItem_Bye_{Bye: &pb.WorkerItem_Bye{}}}
	}
	panic(fmt.Sprintf("no form for %T", m))
}

// DecodeFromWorker is what EncodeFromWorker encoded; nil for an item of a
// newer version.
func DecodeFromWorker(it *pb.WorkerItem) FromWorker {
	switch v := it.GetItem().(type) {
	case *pb.WorkerItem_Hello_:
		h := v.Hello
		m := WorkerHello{
			ID: h.GetId(), Name: h.GetName(), Pool: h.GetPool(), Executors: int(h.GetExecutors()),
			Properties: make(map[string][]string, len(h.GetProperties())), Attempts: heldFromWire(h.GetAttempts()), To: h.GetTo(),
		}
		for _, p := range h.GetProperties() {
			m.Properties[p.GetName()] = slices.Clone(p.GetValues())
		}
		return m
	case *pb.WorkerItem_Beat_:
		return WorkerBeat{Running: int(v.Beat.GetRunning()), Heard: heardFromWire(v.Beat.GetHeard())}
	case *pb.WorkerItem_Lend_:
		return Lend{Slot: v.Lend.GetSlot(), Seq: v.Lend.GetSeq()}
	case *pb.WorkerItem_Recall_:
		return Recall{Slot: v.Recall.GetSlot(), Seq: v.Recall.GetSeq()}
	case *pb.WorkerItem_Claim_:
		return Claim{ID: v.Claim.GetId(), Ahead: v.Claim.GetAhead()}
	case *pb.WorkerItem_Refuse_:
		return Refuse{unref(v.Refuse.GetRef())}
	case *pb.WorkerItem_Started_:
		return AttemptStarted{unref(v.Started.GetRef()), instant(v.Started.GetAtUnixNs())}
	case *pb.WorkerItem_Done_:
		return Done{
			Ref: unref(v.Done.GetRef()), Response: v.Done.GetResponse(),
			Code: codes.Code(v.Done.GetCode()), Message: v.Done.GetMessage(),
		}
	case *pb.WorkerItem_Withdrawn_:
		return Withdrawn{unref(v.Withdrawn.GetRef())}
	case *pb.WorkerItem_Inventory_:
		return Inventory{Of: v.Inventory.GetOf(), Term: v.Inventory.GetTerm(), Attempts: heldFromWire(v.Inventory.GetAttempts())}
	case *pb.WorkerItem_Fenced:
		return Fenced{Node: v.Fenced.GetNode(), Term: v.Fenced.GetTerm()}
	case *pb.WorkerItem_Disowned_:
		return Disowned{unref(v.Disowned.GetRef()), v.Disowned.GetOwner()}
	case *pb.WorkerItem_Bye_:
		return Bye{}
	}
	return nil
}

// EncodeToWorker is m as it travels.
func EncodeToWorker(m ToWorker) *pb.SchedulerItem {
	switch m := m.(type) {
	case SchedulerHello:
		return &pb.SchedulerItem{Item: &pb.SchedulerItem_Hello_{Hello: &pb.SchedulerItem_Hello{Id: m.ID, Term: m.Term}}}
	case SchedulerBeat:
		return &pb.SchedulerItem{Item: &pb.SchedulerItem_Beat_{Beat: &pb.SchedulerItem_Beat{}}}
	case Offer:
		t := m.Task
		return &pb.SchedulerItem{Item: &pb.SchedulerItem_Offer_{Offer: &pb.SchedulerItem_Offer{
			Slot: m.Slot, Seq: m.Seq, Claim: m.Claim, Task: &pb.WorkTask{
				Id: t.ID, Attempt: t.Attempt, Instance: t.Instance, Action: t.Action.Append(nil), DoNotCache: t.DoNotCache,
				Metadata: t.Metadata, ActionBlob: t.ActionBlob, CommandBlob: t.CommandBlob, RootBlob: t.RootBlob,
				QueuedUnixNs: nanos(t.QueuedAt),
			},
		}}}
	case None:
		return &pb.SchedulerItem{Item: &pb.SchedulerItem_None_{None: &pb.SchedulerItem_None{Claim: m.Claim}}}
	case GiveBack:
		return &pb.SchedulerItem{Item: &pb.SchedulerItem_GiveBack_{GiveBack: &pb.SchedulerItem_GiveBack{Slot: m.Slot, Seq: m.Seq}}}
	case Bid:
		return &pb.SchedulerItem{Item: &pb.SchedulerItem_Bid_{Bid: &pb.SchedulerItem_Bid{
			Priority: m.Priority, Principal: m.Principal, Invocation: m.Invocation, ArrivedUnixS: m.Arrived, Want: m.Want,
		}}}
	case Kill:
		return &pb.SchedulerItem{Item: &pb.SchedulerItem_Kill{Kill: ref(m.Ref)}}
	case Withdraw:
		return &pb.SchedulerItem{Item: &pb.SchedulerItem_Withdraw{Withdraw: ref(m.Ref)}}
	case Ack:
		return &pb.SchedulerItem{Item: &pb.SchedulerItem_Ack{Ack: ref(m.Ref)}}
	case Own:
		return &pb.SchedulerItem{Item: &pb.SchedulerItem_Own_{Own: &pb.SchedulerItem_Own{Ref: ref(m.Ref), From: m.From}}}
	case Fence:
		return &pb.SchedulerItem{Item: &pb.SchedulerItem_Fence{Fence: &pb.SchedulerFence{Node: m.Node, Term: m.Term}}}
	}
	panic(fmt.Sprintf("no form for %T", m))
}

// DecodeToWorker is what EncodeToWorker encoded; nil for an item of a newer
// version, and an error for an offer that names no action.
func DecodeToWorker(it *pb.SchedulerItem) (ToWorker, error) {
	switch v := it.GetItem().(type) {
	case *pb.SchedulerItem_Hello_:
		return SchedulerHello{ID: v.Hello.GetId(), Term: v.Hello.GetTerm()}, nil
	case *pb.SchedulerItem_Beat_:
		return SchedulerBeat{}, nil
	case *pb.SchedulerItem_Offer_:
		o, t := v.Offer, v.Offer.GetTask()
		action, err := unpack(t.GetAction())
		if err != nil {
			return nil, fmt.Errorf("action of an offer: %w", err)
		}
		return Offer{Slot: o.GetSlot(), Seq: o.GetSeq(), Claim: o.GetClaim(), Task: &Task{
			ID: t.GetId(), Attempt: t.GetAttempt(), Instance: t.GetInstance(), Action: action, DoNotCache: t.GetDoNotCache(),
			Metadata: t.GetMetadata(), ActionBlob: t.GetActionBlob(), CommandBlob: t.GetCommandBlob(), RootBlob: t.GetRootBlob(),
			QueuedAt: instant(t.GetQueuedUnixNs()),
		}}, nil
	case *pb.SchedulerItem_None_:
		return None{v.None.GetClaim()}, nil
	case *pb.SchedulerItem_GiveBack_:
		return GiveBack{v.GiveBack.GetSlot(), v.GiveBack.GetSeq()}, nil
	case *pb.SchedulerItem_Bid_:
		b := v.Bid
		return Bid{Want: b.GetWant(), Class: queue.Class{
			Priority: b.GetPriority(), Principal: b.GetPrincipal(), Invocation: b.GetInvocation(), Arrived: b.GetArrivedUnixS(),
		}}, nil
	case *pb.SchedulerItem_Kill:
		return Kill{unref(v.Kill)}, nil
	case *pb.SchedulerItem_Withdraw:
		return Withdraw{unref(v.Withdraw)}, nil
	case *pb.SchedulerItem_Ack:
		return Ack{unref(v.Ack)}, nil
	case *pb.SchedulerItem_Own_:
		return Own{unref(v.Own.GetRef()), v.Own.GetFrom()}, nil
	case *pb.SchedulerItem_Fence:
		return Fence{Node: v.Fence.GetNode(), Term: v.Fence.GetTerm()}, nil
	}
	return nil, nil //nolint:nilnil // an item that this version does not know is no error
}

func requestToWire(r *Request) *pb.ExecuteTask {
	x := &pb.ExecuteTask{
		Instance: r.Instance, Scope: r.Scope, Action: r.Action.Append(nil), DoNotCache: r.DoNotCache,
		Priority: r.Priority, Invocation: r.Invocation, Principal: r.Principal, Metadata: r.Metadata,
		TimeoutNs: int64(r.Timeout), FirstOutput: r.FirstOutput,
		ActionBlob: r.ActionBlob, CommandBlob: r.CommandBlob, RootBlob: r.RootBlob,
	}
	for _, p := range r.Platform {
		x.Platform = append(x.Platform, &pb.PlatformProperty{Name: p.Name, Value: p.Value})
	}
	for _, n := range r.Near {
		x.Near = append(x.Near, &pb.ExecuteTask_Near{Worker: n.Worker, Bytes: n.Bytes})
	}
	return x
}

func requestFromWire(x *pb.ExecuteTask) (*Request, error) {
	action, err := unpack(x.GetAction())
	if err != nil {
		return nil, fmt.Errorf("action: %w", err)
	}
	r := &Request{
		Instance: x.GetInstance(), Scope: x.GetScope(), Action: action, DoNotCache: x.GetDoNotCache(),
		Priority: x.GetPriority(), Invocation: x.GetInvocation(), Principal: x.GetPrincipal(), Metadata: x.GetMetadata(),
		Timeout: time.Duration(x.GetTimeoutNs()), FirstOutput: x.GetFirstOutput(),
		ActionBlob: x.GetActionBlob(), CommandBlob: x.GetCommandBlob(), RootBlob: x.GetRootBlob(),
	}
	for _, p := range x.GetPlatform() {
		r.Platform = append(r.Platform, match.Property{Name: p.GetName(), Value: p.GetValue()})
	}
	for _, n := range x.GetNear() {
		r.Near = append(r.Near, Near{Worker: n.GetWorker(), Bytes: n.GetBytes()})
	}
	return r, nil
}

func keysToWire(ks []operation.Key) *pb.CallerItem_Keys {
	out := &pb.CallerItem_Keys{Keys: make([]*pb.TaskKey, len(ks))}
	for i, k := range ks {
		out.Keys[i] = &pb.TaskKey{Instance: k.Instance, Scope: k.Scope, Action: k.Action.Append(nil)}
	}
	return out
}

func keysFromWire(x *pb.CallerItem_Keys) ([]operation.Key, error) {
	out := make([]operation.Key, len(x.GetKeys()))
	for i, k := range x.GetKeys() {
		action, err := unpack(k.GetAction())
		if err != nil {
			return nil, fmt.Errorf("key: %w", err)
		}
		out[i] = operation.Key{Instance: k.GetInstance(), Scope: k.GetScope(), Action: action}
	}
	return out, nil
}
