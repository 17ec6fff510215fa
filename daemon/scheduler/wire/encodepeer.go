package wire

import (
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"

	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
)

// EncodeToOwner is m as it travels.
func EncodeToOwner(m ToOwner) *pb.CallerItem {
	named := func(call uint64, name, except string, hops uint32) *pb.CallerItem_Named {
		return &pb.CallerItem_Named{Call: call, Name: name, Except: except, Hops: hops}
	}
	switch m := m.(type) {
	case CallerHello:
		return &pb.CallerItem{Item: &pb.CallerItem_Hello_{Hello: &pb.CallerItem_Hello{Id: m.ID, Term: m.Term, To: m.To}}}
	case CallerBeat:
		return &pb.CallerItem{Item: &pb.CallerItem_Beat_{Beat: &pb.CallerItem_Beat{Heard: heardToWire(m.Heard)}}}
	case Submit:
		return &pb.CallerItem{Item: &pb.CallerItem_Submit_{Submit: &pb.CallerItem_Submit{
			Call: m.Call, Op: m.Op, Name: m.Name, Except: m.Except, Hops: m.Hops, Request: requestToWire(m.Request),
		}}}
	case Attach:
		return &pb.CallerItem{Item: &pb.CallerItem_Attach{Attach: named(m.Call, m.Name, m.Except, m.Hops)}}
	case Look:
		return &pb.CallerItem{Item: &pb.CallerItem_Look{Look: named(m.Call, m.Name, m.Except, m.Hops)}}
	case Cancel:
		return &pb.CallerItem{Item: &pb.CallerItem_Cancel{Cancel: named(m.Call, m.Name, m.Except, m.Hops)}}
	case Detach:
		return &pb.CallerItem{Item: &pb.CallerItem_Detach_{Detach: &pb.CallerItem_Detach{Call: m.Call}}}
	case Keeps:
		return &pb.CallerItem{Item: &pb.CallerItem_Keeps{Keeps: keysToWire(m.Keys)}}
	case Opened:
		return &pb.CallerItem{Item: &pb.CallerItem_Opened_{Opened: &pb.CallerItem_Opened{}}}
	case Releases:
		return &pb.CallerItem{Item: &pb.CallerItem_Releases{Releases: keysToWire(m.Keys)}}
	}
	panic(fmt.Sprintf("no form for %T", m))
}

// DecodeToOwner is what EncodeToOwner encoded; nil for an item of a newer version.
func DecodeToOwner(it *pb.CallerItem) (ToOwner, error) {
	switch v := it.GetItem().(type) {
	case *pb.CallerItem_Hello_:
		return CallerHello{ID: v.Hello.GetId(), Term: v.Hello.GetTerm(), To: v.Hello.GetTo()}, nil
	case *pb.CallerItem_Beat_:
		return CallerBeat{Heard: heardFromWire(v.Beat.GetHeard())}, nil
	case *pb.CallerItem_Submit_:
		s := v.Submit
		r, err := requestFromWire(s.GetRequest())
		if err != nil {
			return nil, fmt.Errorf("submitted request: %w", err)
		}
		return Submit{Call: s.GetCall(), Op: s.GetOp(), Name: s.GetName(), Except: s.GetExcept(), Hops: s.GetHops(), Request: r}, nil
	case *pb.CallerItem_Attach:
		return Attach{Call: v.Attach.GetCall(), Name: v.Attach.GetName(), Except: v.Attach.GetExcept(), Hops: v.Attach.GetHops()}, nil
	case *pb.CallerItem_Look:
		return Look{Call: v.Look.GetCall(), Name: v.Look.GetName(), Except: v.Look.GetExcept(), Hops: v.Look.GetHops()}, nil
	case *pb.CallerItem_Cancel:
		return Cancel{Call: v.Cancel.GetCall(), Name: v.Cancel.GetName(), Except: v.Cancel.GetExcept(), Hops: v.Cancel.GetHops()}, nil
	case *pb.CallerItem_Detach_:
		return Detach{v.Detach.GetCall()}, nil
	case *pb.CallerItem_Keeps:
		ks, err := keysFromWire(v.Keeps)
		return Keeps{ks}, err
	case *pb.CallerItem_Opened_:
		return Opened{}, nil
	case *pb.CallerItem_Releases:
		ks, err := keysFromWire(v.Releases)
		return Releases{ks}, err
	}
	return nil, nil //nolint:nilnil // an item that this version does not know is no error
}

// coder is what errors that carry a gRPC code implement.
type coder interface{ Code() codes.Code }

// EncodeToCaller is m as it travels.
func EncodeToCaller(m ToCaller) *pb.OwnerItem {
	switch m := m.(type) {
	case OwnerHello:
		return &pb.OwnerItem{Item: &pb.OwnerItem_Hello_{Hello: &pb.OwnerItem_Hello{Id: m.ID, Term: m.Term}}}
	case OwnerBeat:
		return &pb.OwnerItem{Item: &pb.OwnerItem_Beat_{Beat: &pb.OwnerItem_Beat{}}}
	case Answer:
		u := m.Update
		x := &pb.TaskUpdate{
			Name: u.Name, Stage: uint32(u.Stage), Worker: u.Worker, QueuedUnixNs: nanos(u.QueuedAt),
			StartedUnixNs: nanos(u.StartedAt), Done: u.Done, Response: u.Response,
		}
		if !u.Action.IsZero() {
			x.Action = u.Action.Append(nil)
		}
		if u.Err != nil {
			x.Code, x.Message = uint32(codes.Internal), u.Err.Error()
			var c coder
			if errors.As(u.Err, &c) {
				x.Code = uint32(c.Code())
			}
		}
		return &pb.OwnerItem{Item: &pb.OwnerItem_Update_{Update: &pb.OwnerItem_Update{Call: m.Call, Update: x}}}
	case Gone:
		return &pb.OwnerItem{Item: &pb.OwnerItem_Gone_{Gone: &pb.OwnerItem_Gone{Call: m.Call}}}
	case NotMine:
		return &pb.OwnerItem{Item: &pb.OwnerItem_NotMine_{NotMine: &pb.OwnerItem_NotMine{Call: m.Call}}}
	case OwnerFenced:
		return &pb.OwnerItem{Item: &pb.OwnerItem_Fenced{Fenced: &pb.SchedulerFence{Node: m.Node, Term: m.Term}}}
	}
	panic(fmt.Sprintf("no form for %T", m))
}

// DecodeToCaller is what EncodeToCaller encoded; nil for an item of a newer version.
func DecodeToCaller(it *pb.OwnerItem) (ToCaller, error) {
	switch v := it.GetItem().(type) {
	case *pb.OwnerItem_Hello_:
		return OwnerHello{ID: v.Hello.GetId(), Term: v.Hello.GetTerm()}, nil
	case *pb.OwnerItem_Beat_:
		return OwnerBeat{}, nil
	case *pb.OwnerItem_Update_:
		x := v.Update.GetUpdate()
		u := Update{
			Name: x.GetName(), Stage: Stage(x.GetStage()), Worker: x.GetWorker(), QueuedAt: instant(x.GetQueuedUnixNs()),
			StartedAt: instant(x.GetStartedUnixNs()), Done: x.GetDone(), Response: x.GetResponse(),
		}
		if len(x.GetAction()) > 0 {
			var err error
			if u.Action, err = unpack(x.GetAction()); err != nil {
				return nil, fmt.Errorf("action of an update: %w", err)
			}
		}
		if x.GetCode() != 0 {
			u.Err = &Error{Status: codes.Code(x.GetCode()), Text: x.GetMessage()}
		}
		return Answer{Call: v.Update.GetCall(), Update: u}, nil
	case *pb.OwnerItem_Gone_:
		return Gone{v.Gone.GetCall()}, nil
	case *pb.OwnerItem_NotMine_:
		return NotMine{v.NotMine.GetCall()}, nil
	case *pb.OwnerItem_Fenced:
		return OwnerFenced{Node: v.Fenced.GetNode(), Term: v.Fenced.GetTerm()}, nil
	}
	return nil, nil //nolint:nilnil // an item that this version does not know is no error
}
