package disk

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
)

// ErrCorrupt says that a copy's bytes were not what was stored. The copy has
// been dropped; the error also wraps blob.ErrUnavailable, since the blob may
// well be intact elsewhere.
var ErrCorrupt = errors.New("copy is corrupt")

// ErrLocked says that another process uses the directory.
var ErrLocked = errors.New("directory is in use by another process")

var errClosed = fmt.Errorf("disk is closed: %w", blob.ErrUnavailable)

// isNoSpace reports whether the file system or the user's quota is full.
func isNoSpace(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}

// diskError gives an error of the file system the meaning that callers act on:
// no room, or could not tell. It is never a miss.
func diskError(err error) error {
	switch {
	case err == nil:
		return nil
	case isNoSpace(err):
		return fmt.Errorf("%w: %w", blob.ErrFull, err)
	case errors.Is(err, blob.ErrFull), errors.Is(err, blob.ErrUnavailable), errors.Is(err, blob.ErrMismatch),
		errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	}
	return fmt.Errorf("%w: %w", blob.ErrUnavailable, err)
}

func syncDir(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
