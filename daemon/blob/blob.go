// Package blob says what a store of blobs is: the interfaces that the stores
// below it (disk, bucket, replica) implement and that everything above them
// uses, and the errors that they share.
//
// A blob is immutable and named by its digest. Every store verifies what it
// is given against its digest, and holds the empty blob without having been
// given it.
package blob

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc/codes"

	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

// SmallSize is the largest blob, in bytes, that stores keep in segments and
// that travels between nodes inside a message rather than as a stream
// (storage.md section 5).
const SmallSize = 64 << 10

// Error is a sentinel that carries the gRPC code by which a client learns of it.
type Error struct {
	text string
	code codes.Code
}

func (e *Error) Error() string    { return e.text }
func (e *Error) Code() codes.Code { return e.code }

// The errors of stores. Only ErrNotFound says that a blob is not there;
// everything else means that the store could not do what it was asked.
var (
	ErrNotFound    = &Error{"blob not found", codes.NotFound}
	ErrMismatch    = &Error{"bytes do not have the digest they were sent under", codes.InvalidArgument}
	ErrOutOfRange  = &Error{"offset beyond the end of the blob", codes.OutOfRange}
	ErrFull        = &Error{"no room", codes.ResourceExhausted}
	ErrUnavailable = &Error{"could not tell", codes.Unavailable}
)

// IsNotFound reports whether err says that a blob is not there.
func IsNotFound(err error) bool { return errors.Is(err, ErrNotFound) }

// Blob is a small blob with its bytes.
type Blob struct {
	Digest digest.Digest
	Data   []byte
}

// Result is the answer for one blob of a batch: its bytes, or why not.
type Result struct {
	Data []byte
	Err  error
}

// Getter reads blobs. Its methods are safe for concurrent use.
type Getter interface {
	// Get streams the blob from offset off (0 <= off <= size) to its end. The
	// caller closes the reader. An absent blob is ErrNotFound, and nothing
	// else is. A reader that fails half way returns an error other than
	// io.EOF; what it returned until then is right.
	Get(ctx context.Context, d digest.Digest, off int64) (io.ReadCloser, error)
	// GetBatch reads whole small blobs (of at most SmallSize each); the
	// answers stand in the order of ds. The caller owns the bytes.
	GetBatch(ctx context.Context, ds []digest.Digest) []Result
}

// Putter stores blobs. Its methods are safe for concurrent use.
type Putter interface {
	// Put reads r to its end and stores the blob. Bytes that do not have
	// the digest d are ErrMismatch, and nothing is stored. A nil error
	// means that the blob is stored as durably as the store promises.
	Put(ctx context.Context, d digest.Digest, r io.Reader) error
	// PutBatch stores small blobs; the answers stand in their order.
	PutBatch(ctx context.Context, bs []Blob) []error
}

// Finder tells which blobs are there.
type Finder interface {
	// Missing returns those of ds that the store does not hold, and marks
	// the others as used now. An error means that it could not tell:
	// nothing may be taken for missing then.
	Missing(ctx context.Context, ds []digest.Digest) ([]digest.Digest, error)
}

// Store does all three.
type Store interface {
	Getter
	Putter
	Finder
}
