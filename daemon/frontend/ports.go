package frontend

import (
	"context"
	"time"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

// Store is the cluster's CAS.
type Store = blob.Store

// UploadKey names a resumable upload beside its digest.
type UploadKey struct{ Principal, Instance, UUID string }

// Uploads keeps partial uploads. It is safe for concurrent use.
type Uploads interface {
	// Upload opens the upload named by key and d at off. Offset 0 starts it
	// anew; any other must be the committed size. The caller closes it.
	Upload(ctx context.Context, key UploadKey, d digest.Digest, off int64) (Upload, error)
	// UploadOffset tells how many bytes of the upload are kept (0 if it is
	// unknown), and whether it is complete.
	UploadOffset(ctx context.Context, key UploadKey, d digest.Digest) (committed int64, complete bool, err error)
}

// Upload is one open upload. It is not safe for concurrent use.
type Upload interface {
	// Write appends p, which it does not keep.
	Write(p []byte) error
	Offset() int64
	// Finish verifies the digest (blob.ErrMismatch) and stores the blob.
	Finish() error
	// Close lets go of the upload; what was written of an unfinished one is
	// kept for a resumption.
	Close() error
}

// ActionKey names an entry of the action cache.
type ActionKey struct {
	Instance string
	Action   digest.Digest
}

// ActionCache keeps serialized ActionResults. It is safe for concurrent use.
type ActionCache interface {
	// Get returns blob.ErrNotFound on a miss. The bytes are not changed.
	Get(ctx context.Context, k ActionKey) ([]byte, error)
	Put(ctx context.Context, k ActionKey, result []byte) error
}

// Property is a platform property.
type Property struct{ Name, Value string }

// Request is an action to execute.
type Request struct {
	Instance, Scope                   string
	Action                            digest.Digest
	DoNotCache                        bool
	Priority                          int32
	Invocation, Principal             string
	Metadata                          []byte
	Platform                          []Property
	Timeout                           time.Duration
	FirstOutput                       string
	ActionBlob, CommandBlob, RootBlob []byte
}

// Update tells how far an operation has come.
type Update struct {
	Name                string
	Action              digest.Digest
	Stage               Stage
	Worker              string
	QueuedAt, StartedAt time.Time
	Done                bool
	Response            []byte
	Err                 error
}

// Stage is how far an operation has come, numbered as REAPI's ExecutionStage.
type Stage uint8

// Executor runs actions. It is safe for concurrent use. Its errors carry their
// codes; an unknown operation's is NotFound.
type Executor interface {
	// Execute sends updates until the operation is done: the first at once,
	// a repeat at least every 30 s. It returns early when ctx ends or send
	// fails, which leaves the operation running.
	Execute(ctx context.Context, r Request, send func(Update) error) error
	// Wait does the same for an operation that is there already.
	Wait(ctx context.Context, name string, send func(Update) error) error
	Operation(ctx context.Context, name string) (Update, error)
	Cancel(ctx context.Context, name string) error
	// List returns the operations that are known, in no particular order.
	List(ctx context.Context) ([]Update, error)
}
