package sandbox

import (
	"os"

	"golang.org/x/sys/unix"
)

// Remains is what an action left: its root, moved to where no action gets, and
// what it wrote. The executor is free for the next action meanwhile.
type Remains struct {
	e      *Executor // for what does not change: uid, sandbox
	path   string
	fd     int
	linked []linkedInput
	copies []string // of outputs that could not be taken as they are

	// Stdout and Stderr are the caller's.
	Stdout, Stderr Stream
}

// Finish takes the root and the streams away from the executor.
func (e *Executor) Finish() (*Remains, error) {
	r := &Remains{e: e, path: e.sb.trash.next(""), fd: -1, linked: e.linked}
	if err := os.Rename(e.Root(), r.path); err != nil {
		return nil, err
	}
	e.rooted, e.linked = false, nil
	if !e.own {
		_ = unix.Chmod(r.path, 0o755) // it was the action's to change
	}
	var err error
	if r.fd, err = unix.Open(r.path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0); err != nil {
		r.Close()
		return nil, &os.PathError{Op: "open", Path: r.path, Err: err}
	}
	if r.Stdout, err = e.out[0].take(e); err == nil {
		r.Stderr, err = e.out[1].take(e)
	}
	if err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// Close has everything deleted that was not taken.
func (r *Remains) Close() {
	if r.fd >= 0 {
		_ = unix.Close(r.fd)
		r.fd = -1
	}
	for _, s := range []*Stream{&r.Stdout, &r.Stderr} {
		if s.Path != "" {
			_ = os.Remove(s.Path)
		}
	}
	for _, c := range r.copies {
		_ = os.Remove(c)
	}
	if !r.e.sb.trash.dropEmpty(r.path) { // as for any action without inputs and outputs
		r.e.sb.doom(doomed{r.path, true})
	}
}
