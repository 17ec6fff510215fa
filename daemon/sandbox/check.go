package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

// linkedInput is how a linked input looked before the action that shares the
// daemon's uid could touch it.
type linkedInput struct {
	path string // in the root, with its leading slash
	file *File
	seal seal
}

type seal struct {
	dev, ino uint64
	size     int64
	mtime    unix.Timespec
	mode     uint32
}

func sealOf(path string) (seal, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return seal{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return seal{st.Dev, st.Ino, st.Size, st.Mtim, st.Mode}, nil
}

func (e *Executor) remember(p *Plan) error {
	e.linked = e.linked[:0]
	for _, d := range p.dirs {
		for i := range d.tree.Files {
			f := &d.tree.Files[i]
			if !f.Properties.none() || f.Digest.IsEmpty() {
				continue
			}
			l := linkedInput{path: d.path + "/" + f.Name, file: f}
			var err error
			if l.seal, err = sealOf(e.Root() + l.path); err != nil {
				return err
			}
			e.linked = append(e.linked, l)
		}
	}
	return nil
}

// Changed lists the linked inputs that the action altered where it could, by
// their size, mtime and mode. The store's files are no longer what their
// digests say, and neither is the action's result. Where an action has taken
// its link away, the file is linked anew to look at it.
func (r *Remains) Changed(ctx context.Context, src Source) ([]digest.Digest, error) {
	var changed []digest.Digest
	for _, l := range r.linked {
		now, err := sealOf(r.path + l.path)
		if err != nil || now.ino != l.seal.ino || now.dev != l.seal.dev {
			again := r.e.sb.trash.next(".in")
			err := src.Link(ctx, l.file.Digest, l.file.Executable, again)
			if err == nil {
				now, err = sealOf(again)
				_ = os.Remove(again)
			}
			if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
				return nil, err
			}
			if err != nil {
				return nil, fmt.Errorf("look at an input again: %w", err)
			}
			if now.ino != l.seal.ino {
				continue // replaced meanwhile, as a file with many links is
			}
		}
		if now != l.seal {
			changed = append(changed, l.file.Digest)
		}
	}
	return changed, nil
}
