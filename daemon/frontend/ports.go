package frontend

import (
	"context"

	"google.golang.org/grpc/mem"

	"github.com/remex-build/terraform-provider-remex/daemon/actioncache"
	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/blob/replica"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler"
)

// Store is the cluster's CAS.
type Store = blob.Store

// Uploads keeps partial uploads. It is safe for concurrent use.
type Uploads interface {
	// Upload opens the upload named by key and d at off. Offset 0 starts it
	// anew; any other must be the committed size. The caller closes it.
	Upload(ctx context.Context, key replica.UploadKey, d digest.Digest, off int64) (Upload, error)
	// UploadOffset tells how many bytes of the upload are kept (0 if it is
	// unknown), and whether the whole blob is stored.
	UploadOffset(ctx context.Context, key replica.UploadKey, d digest.Digest) (committed int64, complete bool, err error)
}

// Upload is one open upload. It is not safe for concurrent use.
type Upload interface {
	// Complete reports that the blob is stored already, so that nothing need
	// be written or finished.
	Complete() bool
	// Append appends data without copying it: it takes references of its own,
	// and the caller keeps those that it has.
	Append(data mem.BufferSlice) error
	// Finish verifies the digest (blob.ErrMismatch) and stores the blob.
	Finish() error
	// Close lets go of the upload; what was written of an unfinished one is
	// kept for a resumption.
	Close() error
}

// UploadsOf are the uploads of the cluster's CAS.
func UploadsOf(s *replica.Store) Uploads { return replicaUploads{s} }

// replicaUploads returns the store's uploads as the interface that they satisfy.
type replicaUploads struct{ *replica.Store }

func (r replicaUploads) Upload(ctx context.Context, key replica.UploadKey, d digest.Digest, off int64) (Upload, error) {
	u, err := r.Store.Upload(ctx, key, d, off)
	if err != nil {
		return nil, err // not a nil *replica.Upload, which is no nil Upload
	}
	return u, nil
}

// ActionCache keeps serialized ActionResults. It is safe for concurrent use.
type ActionCache interface {
	// Get returns blob.ErrNotFound on a miss. The bytes are not changed.
	Get(ctx context.Context, k actioncache.Key) ([]byte, error)
	Put(ctx context.Context, k actioncache.Key, result []byte) error
}

// What an Executor is told, and tells.
type (
	Property = scheduler.Property
	Request  = scheduler.Request
	Update   = scheduler.Update
	Stage    = scheduler.Stage
)

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
