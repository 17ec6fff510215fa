// Package sandbox owns the running of actions on a worker: the runner
// processes, the directories that actions run in and what they leave there.
//
// It promises that when Executor.Run returns nothing of the action is alive,
// that what an action sees or does never depends on the cache's state, that an
// action cannot change its inputs for anybody else, and that nothing outside
// the exec root is read or written on its behalf when inputs are laid out and
// outputs gathered. It knows digests, but nothing of REAPI: package action
// speaks that. DESIGN.md says why it is built as it is.
package sandbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
)

// Options of a Sandbox. The zero value of each but Dir, Executors and Log is
// usable.
type Options struct {
	// Dir holds the exec roots. It is on the file system of the blobs that
	// are linked into them, and belongs to this Sandbox alone.
	Dir       string
	Executors int
	// UIDBase is the first uid to try for the executors' own; 0 means 200000.
	// A daemon that may not set uids, and one with a negative UIDBase, runs
	// actions under its own uid.
	UIDBase int
	// Node is how messages to users name this machine.
	Node   string
	Limits Limits

	Log        *slog.Logger
	Registerer prometheus.Registerer
}

// Limits are what an action may take. Zero values stand for the defaults.
type Limits struct {
	// MaxBytes and MaxInodes bound what an action may leave in its exec root
	// beyond its inputs; 32 GiB and a million.
	MaxBytes, MaxInodes int64
	// Reserve is what actions leave free on the file system; 256 MiB.
	Reserve int64
	// MaxStream is how much of stdout, and of stderr, is kept; 64 MiB.
	MaxStream int64
	// Grace is how long an action that has run out of time has from SIGTERM
	// to SIGKILL; 5 s.
	Grace time.Duration
}

const defaultUIDBase = 200000

func (o *Options) fill() {
	if o.UIDBase == 0 {
		o.UIDBase = defaultUIDBase
	}
	l := &o.Limits
	l.MaxBytes = cmp.Or(l.MaxBytes, 32<<30)
	l.MaxInodes = cmp.Or(l.MaxInodes, 1<<20)
	l.Reserve = cmp.Or(l.Reserve, 256<<20)
	l.MaxStream = cmp.Or(l.MaxStream, 64<<20)
	l.Grace = cmp.Or(l.Grace, 5*time.Second)
	if o.Node == "" {
		o.Node, _ = os.Hostname()
	}
}

// Sandbox runs the actions of one worker.
type Sandbox struct {
	o       Options
	log     *slog.Logger
	metrics *metrics
	dir     string // Options.Dir without symbolic links
	lock    *os.File
	keeper  lease
	hide    string // see exposeDir
	umask   int

	executors []*Executor
	trash     remover
	doomed    chan doomed // trees to delete in the background
	wg        sync.WaitGroup
}

// ErrInsideRunner is what New says in a runner: the binary lacks the call of
// RunnerMain at the start of its main function.
var ErrInsideRunner = errors.New("this process was started as a runner and must call sandbox.RunnerMain first")

// New makes the executors; their runners start when first used. Roots left by
// an earlier daemon are deleted in the background.
func New(o Options) (*Sandbox, error) {
	if os.Getenv(runnerEnv) != "" {
		return nil, ErrInsideRunner
	}
	o.fill()
	s := &Sandbox{o: o, log: o.Log.With("part", "sandbox"), metrics: newMetrics(o.Registerer)}
	if err := s.open(); err != nil {
		s.close()
		return nil, fmt.Errorf("sandbox in %s: %w", o.Dir, err)
	}
	for range removers {
		s.wg.Go(func() {
			for d := range s.doomed {
				s.remove(d)
			}
		})
	}
	return s, nil
}

// removers delete trees; doomed holds so many more, then who wants one
// deleted does it himself.
const removers = 2

func (s *Sandbox) open() error {
	if err := os.MkdirAll(s.o.Dir, 0o711); err != nil {
		return err
	}
	dir, err := filepath.Abs(s.o.Dir)
	if err != nil {
		return err
	}
	if s.dir, err = filepath.EvalSymlinks(dir); err != nil {
		return err
	}
	if err := os.Chmod(s.dir, 0o711); err != nil {
		return err
	}
	if s.lock, err = os.OpenFile(s.dir+"/lock", os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return err
	}
	if err := unix.Flock(int(s.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("another worker uses it: %w", err)
	}
	s.umask = currentUmask()
	s.trash.dir = s.dir + "/done"
	s.trash.seq.Store(uint64(time.Now().UnixNano()))
	s.doomed = make(chan doomed, 1024)
	if err := s.sweep(); err != nil {
		return err
	}
	if err := s.trash.spares.open(s.dir + "/spare"); err != nil {
		return err
	}
	own := s.ownUIDs()
	for i := range s.o.Executors {
		e := &Executor{sb: s, own: own, uid: os.Geteuid(), dir: fmt.Sprintf("%s/x%d", s.dir, i), held: make(chan struct{}, 1)}
		s.executors = append(s.executors, e)
		if own {
			if e.lse, err = leaseUID(s.o.UIDBase, s.o.UIDBase+leaseSpan); err != nil {
				return err
			}
			e.uid = e.lse.uid
		}
		if err := e.makeDir(); err != nil {
			return err
		}
	}
	if own {
		return s.takeOver()
	}
	return nil
}

// takeOver ends what actions of a daemon that died may have left under the
// executors' uids, and finds out whether runners can work here: one below a
// closed directory needs the right to mount.
func (s *Sandbox) takeOver() error {
	busy := make(map[int]bool)
	for _, p := range processes() {
		var st unix.Stat_t
		if unix.Stat(fmt.Sprintf("/proc/%d", p.pid), &st) == nil {
			busy[int(st.Uid)] = true
		}
	}
	for i, e := range s.executors {
		if !busy[e.uid] && (i > 0 || s.hide == "") {
			continue // its runner starts when there is something to run
		}
		err := e.ready(context.Background())
		if err != nil && s.hide != "" {
			return s.shareUID(err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// shareUID goes back to actions under the daemon's own uid.
func (s *Sandbox) shareUID(err error) error {
	s.log.Warn(sharing, "why", "the exec roots lie below a closed directory, and nothing can be mounted", "path", s.hide, "err", err)
	for _, e := range s.executors {
		e.own, e.uid = false, os.Geteuid()
		if err := os.Chown(e.dir, os.Geteuid(), os.Getegid()); err != nil {
			return err
		}
	}
	return nil
}

// sharing is what a node says at start when it keeps actions less apart than
// it should.
const sharing = "actions share the daemon's uid: inputs are checked after each action, and actions are not kept apart"

// ownUIDs prepares for uids of the executors' own and reports whether they
// can be had.
func (s *Sandbox) ownUIDs() bool {
	share := func(why string, err error) bool {
		s.log.Warn(sharing, "why", why, "err", err)
		return false
	}
	if s.o.UIDBase < 0 {
		return share("configured so", nil)
	}
	if os.Geteuid() != 0 {
		return share("the daemon is not root", nil)
	}
	if !mapped(s.o.UIDBase, s.o.UIDBase+leaseSpan) {
		return share("the uids do not exist in this user namespace", nil)
	}
	hide, err := closedParent(s.dir)
	if err != nil {
		return share("a directory above cannot be looked at", err)
	}
	if s.hide = hide; hide != "" {
		s.log.Info("exec roots lie below a closed directory: actions see an empty one in its place", "path", hide)
	}
	if s.keeper, err = leaseUID(s.o.UIDBase, s.o.UIDBase+leaseSpan); err != nil {
		return share("no uid can be had", err)
	}
	return true
}

// sweep dooms what an earlier daemon left.
func (s *Sandbox) sweep() error {
	if err := os.MkdirAll(s.trash.dir, 0o700); err != nil {
		return err
	}
	for _, dir := range []string{s.trash.dir, s.dir} {
		names, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, n := range names {
			if dir == s.dir && (n.Name() == "lock" || n.Name() == "done") {
				continue
			}
			to := s.trash.next("")
			if err := os.Rename(dir+"/"+n.Name(), to); err != nil {
				return err
			}
			s.doom(doomed{path: to}) // what an earlier daemon's actions may still have open
		}
	}
	return nil
}

// doomed is a tree in the trash.
type doomed struct {
	path   string
	unused bool // no process can have anything of it open
}

// doom has a tree deleted.
func (s *Sandbox) doom(d doomed) {
	select {
	case s.doomed <- d:
	default:
		s.remove(d)
	}
}

func (s *Sandbox) remove(d doomed) {
	if err := s.trash.remove(d.path, d.unused); err != nil {
		s.log.Error("a finished action's files stay behind", "path", d.path, "err", err)
	}
}

// Executor is the i-th executor.
func (s *Sandbox) Executor(i int) *Executor { return s.executors[i] }

// OwnUIDs reports whether each executor has a uid of its own. Where not, an
// action can change its inputs, and Remains.Changed has to be asked.
func (s *Sandbox) OwnUIDs() bool { return len(s.executors) > 0 && s.executors[0].own }

// Close waits for the actions that run, ends the runners and deletes what is
// still to be deleted. Nothing of the Sandbox may be used afterwards.
func (s *Sandbox) Close() error {
	for _, e := range s.executors {
		_ = e.Acquire(context.Background())
		for i := range e.out {
			e.out[i].close()
		}
	}
	close(s.doomed)
	s.wg.Wait()
	s.trash.spares.close()
	s.close()
	return nil
}

func (s *Sandbox) close() {
	for _, e := range s.executors {
		if e.proc != nil {
			e.proc.stop()
			e.proc = nil
		}
		if e.lse.f != nil {
			e.lse.f.Close()
		}
	}
	if s.keeper.f != nil {
		s.keeper.f.Close()
	}
	if s.lock != nil {
		s.lock.Close()
	}
}
