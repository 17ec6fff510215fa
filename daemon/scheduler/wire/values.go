// Package wire owns what schedulers and workers, and schedulers among
// themselves, say to each other: as plain values, which the pure cores take and
// give, and in the form in which they travel.
package wire

import (
	"time"

	"google.golang.org/grpc/codes"

	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/match"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/operation"
)

// Request is an action to be executed. It is not changed once submitted.
type Request struct {
	Instance   string
	Scope      string // of the principal: calls of different scopes share no task
	Action     digest.Digest
	DoNotCache bool

	Priority   int32
	Invocation string
	Principal  string
	Metadata   []byte // a serialized REAPI RequestMetadata

	Platform    []match.Property
	Timeout     time.Duration
	FirstOutput string
	// Near are workers that are known to have some of the inputs.
	Near []Near

	// The blobs as stored, which the offer carries. RootBlob may be nil.
	ActionBlob, CommandBlob, RootBlob []byte
}

// Near is how many bytes of an action's inputs a worker has.
type Near struct {
	Worker string // its name
	Bytes  int64
}

// Key is what the request's task is keyed by.
func (r *Request) Key() operation.Key {
	return operation.Key{Instance: r.Instance, Scope: operation.Scope(r.Scope), Action: r.Action}
}

// Stage is how far an operation has come; the values are those of REAPI's
// ExecutionStage.
type Stage uint8

// The stages.
const (
	Queued    Stage = 2
	Executing Stage = 3
	Completed Stage = 4
)

// Update is the state of an operation.
type Update struct {
	Name      string
	Action    digest.Digest
	Stage     Stage
	Worker    string
	QueuedAt  time.Time
	StartedAt time.Time

	Done     bool
	Response []byte // a serialized ExecuteResponse, when Done without Err
	Err      error  // when Done without Response; it carries its code
}

// Error is why an operation ended without a response.
type Error struct {
	Status codes.Code
	Text   string
}

func (e *Error) Error() string { return e.Text }

// Code is the gRPC code that the client sees.
func (e *Error) Code() codes.Code { return e.Status }

// Task is what a worker is given to run.
type Task struct {
	ID         string // the task's name, as in operation names
	Attempt    uint32
	Instance   string
	Action     digest.Digest
	DoNotCache bool
	Metadata   []byte

	// The blobs as stored. RootBlob may be nil.
	ActionBlob, CommandBlob, RootBlob []byte

	QueuedAt time.Time
}

// Ref is the attempt that t is.
func (t *Task) Ref() Ref { return Ref{t.ID, t.Attempt} }

// Ref names one attempt at a task.
type Ref struct {
	Task    string
	Attempt uint32
}
