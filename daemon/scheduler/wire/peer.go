package wire

import (
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/operation"
)

// ToOwner is what a scheduler that received calls says to one that owns their
// tasks: one of the types below.
type ToOwner interface{ toOwner() }

type (
	// CallerHello opens the stream. The calls of an earlier stream are void.
	// To is whom the caller looks for. A process that has taken over the
	// address of one that died is somebody else, and must not take this stream
	// for the one by which the caller really looks for it.
	CallerHello struct {
		ID   string
		Term uint64
		To   string
	}
	// CallerBeat says that the caller lives, and which schedulers it hears.
	CallerBeat struct{ Heard []Heard }
	// Submit is an Execute call. Op is a nonce of the call, Name how its
	// operation was called before, if it was. Except is a scheduler that is
	// not to be thought of as a home, as it has yet to learn who has what.
	// Hops counts forwarders.
	Submit struct {
		Call    uint64
		Op      uint64
		Name    string
		Except  string
		Hops    uint32
		Request *Request
	}
	// Attach, Look and Cancel are WaitExecution, GetOperation and
	// CancelOperation calls. The latter two are answered by one Update or Gone.
	Attach struct {
		Call   uint64
		Name   string
		Except string
		Hops   uint32
	}
	Look struct {
		Call   uint64
		Name   string
		Except string
		Hops   uint32
	}
	Cancel struct {
		Call   uint64
		Name   string
		Except string
		Hops   uint32
	}
	// Detach ends a call's waiting, and nothing else.
	Detach struct{ Call uint64 }
	// Keeps lists the keys that the sender owns tasks of although their home
	// is the receiver. Releases says that it no longer does.
	Keeps    struct{ Keys []operation.Key }
	Releases struct{ Keys []operation.Key }
	// Opened says that the sender knows what all others keep: it is a home, and
	// an heir.
	Opened struct{}
)

func (CallerHello) toOwner() {}
func (CallerBeat) toOwner()  {}
func (Submit) toOwner()      {}
func (Attach) toOwner()      {}
func (Look) toOwner()        {}
func (Cancel) toOwner()      {}
func (Detach) toOwner()      {}
func (Keeps) toOwner()       {}
func (Releases) toOwner()    {}
func (Opened) toOwner()      {}

// ToCaller is what comes back: one of the types below.
type ToCaller interface{ toCaller() }

type (
	// OwnerHello answers CallerHello.
	OwnerHello struct {
		ID   string
		Term uint64
	}
	// OwnerBeat says that the owner lives.
	OwnerBeat struct{}
	// Answer is how a call's operation stands; Done is the last.
	Answer struct {
		Call   uint64
		Update Update
	}
	// Gone says that no such operation is known, nor its result.
	Gone struct{ Call uint64 }
	// NotMine says that the receiver itself is the key's home.
	NotMine struct{ Call uint64 }
	// OwnerFenced says that the receiver's term is over.
	OwnerFenced struct {
		Node string
		Term uint64
	}
)

func (OwnerHello) toCaller()  {}
func (OwnerBeat) toCaller()   {}
func (Answer) toCaller()      {}
func (Gone) toCaller()        {}
func (NotMine) toCaller()     {}
func (OwnerFenced) toCaller() {}
