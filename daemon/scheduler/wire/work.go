package wire

import (
	"time"

	"google.golang.org/grpc/codes"

	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/queue"
)

// FromWorker is what a worker says to a scheduler: one of the types below.
type FromWorker interface{ fromWorker() }

// AttemptState is how far a worker has come with an attempt.
type AttemptState uint8

// The states, in the order in which they are passed through.
const (
	Accepted AttemptState = 1
	Started  AttemptState = 2
	Finished AttemptState = 3
)

// Held is an attempt that a worker has.
type Held struct {
	Ref
	Owner      string // Member.ID of the scheduler that it answers to
	State      AttemptState
	StartedAt  time.Time
	DoNotCache bool
}

// Heard says how long ago a scheduler was heard.
type Heard struct {
	Node string
	Ago  time.Duration
}

type (
	// WorkerHello opens a worker's stream. It holds all that the worker runs
	// and has finished, for whichever scheduler. Whatever was lent or claimed
	// over an earlier stream is void. To is as in CallerHello.
	WorkerHello struct {
		ID, Name, Pool string
		Properties     map[string][]string
		Executors      int
		Attempts       []Held
		To             string
	}
	// WorkerBeat says that the worker lives, and which schedulers it hears.
	WorkerBeat struct {
		Running int
		Heard   []Heard
	}
	// Lend gives the scheduler a free slot, to be used by an Offer or given
	// back when it is recalled. Seq is new for each loan of a slot.
	Lend struct {
		Slot uint32
		Seq  uint64
	}
	// Recall asks for a loan back. It stays unanswered when an Offer that
	// uses the slot is under way.
	Recall struct {
		Slot uint32
		Seq  uint64
	}
	// Claim asks the scheduler whose bid was best for its best task. Offer or
	// None answers it. Ahead: all executors are busy, and the task would be
	// the next of one of them.
	Claim struct {
		ID    uint64
		Ahead bool
	}
	// Refuse answers an Offer that came too late or from a fenced scheduler.
	Refuse struct{ Ref }
	// AttemptStarted says that the action's process runs.
	AttemptStarted struct {
		Ref
		At time.Time
	}
	// Done ends an attempt: with a response, or with a code other than OK when
	// the trouble was the worker's. It is said again until acknowledged.
	Done struct {
		Ref
		Response []byte
		Code     codes.Code
		Message  string
	}
	// Withdrawn answers Withdraw: the attempt never began and never will.
	Withdrawn struct{ Ref }
	// Inventory answers Fence: all that the worker has, after which it takes
	// nothing more from the fenced term.
	Inventory struct {
		Of       string
		Term     uint64
		Attempts []Held
	}
	// Fenced tells a scheduler that its term is over, as another one took its
	// tasks over.
	Fenced struct {
		Node string
		Term uint64
	}
	// Disowned answers Own: the attempt answers to another owner already.
	Disowned struct {
		Ref
		Owner string
	}
	// Bye says that the worker stops, having ended all it ran.
	Bye struct{}
)

func (WorkerHello) fromWorker()    {}
func (WorkerBeat) fromWorker()     {}
func (Lend) fromWorker()           {}
func (Recall) fromWorker()         {}
func (Claim) fromWorker()          {}
func (Refuse) fromWorker()         {}
func (AttemptStarted) fromWorker() {}
func (Done) fromWorker()           {}
func (Withdrawn) fromWorker()      {}
func (Inventory) fromWorker()      {}
func (Fenced) fromWorker()         {}
func (Disowned) fromWorker()       {}
func (Bye) fromWorker()            {}

// ToWorker is what a scheduler says to a worker: one of the types below.
type ToWorker interface{ toWorker() }

type (
	// SchedulerHello opens the scheduler's half of a worker's stream.
	SchedulerHello struct {
		ID   string
		Term uint64
	}
	// SchedulerBeat says that the scheduler lives.
	SchedulerBeat struct{}
	// Offer places a task: on a lent slot, or in answer to a claim (not 0).
	Offer struct {
		Slot  uint32
		Seq   uint64
		Claim uint64
		Task  *Task
	}
	// None answers a claim: nothing waits for that worker any more. The bid is
	// void.
	None struct{ Claim uint64 }
	// GiveBack ends a loan unused.
	GiveBack struct {
		Slot uint32
		Seq  uint64
	}
	// Bid stands until None, Refuse, the next Bid or the end of the stream: tasks
	// that fit the worker wait, the most urgent of this class. Want is how many of
	// its slots they could use.
	Bid struct {
		queue.Class
		Want uint32
	}
	// Kill ends an attempt; Done follows.
	Kill struct{ Ref }
	// Withdraw takes an attempt back that no executor has begun. It is not
	// answered otherwise.
	Withdraw struct{ Ref }
	// Ack says that Done was taken note of.
	Ack struct{ Ref }
	// Own makes the sender the scheduler that the attempt answers to, in place
	// of From. If it has started or finished, AttemptStarted or Done follows; if
	// it answers to somebody else by now, Disowned.
	Own struct {
		Ref
		From string
	}
	// Fence ends a scheduler's terms up to Term. Inventory answers it.
	Fence struct {
		Node string
		Term uint64
	}
)

func (SchedulerHello) toWorker() {}
func (SchedulerBeat) toWorker()  {}
func (Offer) toWorker()          {}
func (None) toWorker()           {}
func (GiveBack) toWorker()       {}
func (Bid) toWorker()            {}
func (Kill) toWorker()           {}
func (Withdraw) toWorker()       {}
func (Ack) toWorker()            {}
func (Own) toWorker()            {}
func (Fence) toWorker()          {}
