package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Command is what an executor runs in the exec root that was built for it.
type Command struct {
	Argv, Env []string
	Dir       string        // working directory, relative to the root, "" for the root
	Timeout   time.Duration // 0: none
}

// Exit is how a command ended. Nothing that it started is left.
type Exit struct {
	Code      int // 128+N when signal N ended it
	TimedOut  bool
	Started   time.Time
	Ended     time.Time
	User, Sys time.Duration
	MaxRSS    int64
}

// CommandError says that a command could not be started, for a reason that its
// author has to mend: there is no such file, or it cannot be executed.
type CommandError struct{ Text string }

func (e *CommandError) Error() string { return e.Text }

// BudgetError says that an action was killed because it used more of the
// node's disk than its budget.
type BudgetError struct{ Text string }

func (e *BudgetError) Error() string { return e.Text }

// Executor runs one action at a time, each in a fresh exec root at the same
// path, by way of a runner process. Only its Acquire is safe for concurrent
// use: all else belongs to who acquired it.
type Executor struct {
	sb  *Sandbox
	own bool // it has a uid of its own
	uid int  // of its actions
	lse lease
	dir string // holds the root and the streams

	held   chan struct{} // capacity 1, full while acquired
	out    [2]stream
	proc   *runnerProc
	oldSID int // of the last runner, if it had to be given up
	rooted bool
	linked []linkedInput // of the root, where an action could change them
}

// Acquire takes the executor, waiting for who has it.
func (e *Executor) Acquire(ctx context.Context) error {
	select {
	case e.held <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Release gives the executor back, with whatever root and output it has removed.
func (e *Executor) Release() {
	for i := range e.out {
		e.out[i].discard()
	}
	if err := e.discardRoot(); err != nil {
		e.sb.log.Error("exec root stays behind", "path", e.Root(), "err", err)
	}
	<-e.held
}

// Root is the path of the executor's exec root.
func (e *Executor) Root() string { return e.dir + "/root" }

// Run runs c. A CommandError or a BudgetError is the action's fault; after any
// other error nothing is known of the action, and the next Run has a new
// runner. When ctx ends the action is killed at once.
func (e *Executor) Run(ctx context.Context, c Command) (Exit, error) {
	if err := e.ready(ctx); err != nil {
		return Exit{}, err
	}
	cmd := command{
		Root: e.Root(), Cwd: e.Root(), Argv: c.Argv, Env: c.Env,
		Timeout: c.Timeout, Grace: e.sb.o.Limits.Grace,
	}
	if c.Dir != "" {
		cmd.Cwd += "/" + c.Dir
	}
	for i := range e.out {
		if err := e.out[i].open(e, i); err != nil {
			return Exit{}, err
		}
	}
	cmd.Stdout, cmd.Stderr = e.out[0].path, e.out[1].path
	frame := cmd.frame()
	if len(frame) > maxFrame {
		return Exit{}, &CommandError{fmt.Sprintf("arguments and environment of %q are too long: %d bytes", c.Argv[0], len(frame))}
	}
	e.out[0].used, e.out[1].used = true, true
	now, mono := time.Now(), monotonic()
	if _, err := e.proc.conn.Write(frame); err != nil {
		return Exit{}, e.giveUp(fmt.Errorf("talk to the runner: %w", err))
	}
	res, err := e.await(ctx)
	if e.proc == nil {
		// The action's processes have outlived its runner: the next one kills
		// them before it is ready. That it is not is said where it is given up.
		_ = e.ready(context.WithoutCancel(ctx))
	}
	if err != nil {
		return Exit{}, err
	}
	switch res.Failure {
	case startUser:
		return Exit{}, &CommandError{res.Text}
	case startInfra:
		return Exit{}, errors.New(res.Text)
	}
	return Exit{
		Code: res.Code, TimedOut: res.TimedOut,
		Started: now.Add(time.Duration(res.Start - mono)), Ended: now.Add(time.Duration(res.End - mono)),
		User: res.User, Sys: res.Sys, MaxRSS: res.MaxRSS,
	}, nil
}

// await waits for the runner's answer and watches what the action writes.
func (e *Executor) await(ctx context.Context) (*done, error) {
	tick := time.NewTicker(watchPeriod)
	defer tick.Stop()
	ended := ctx.Done()
	var over error
	w := watch{e: e}
	for {
		select {
		case m := <-e.proc.answers:
			if m.err != nil {
				return nil, e.giveUp(fmt.Errorf("the runner died: %w", m.err))
			}
			switch {
			case over != nil:
				return nil, over
			case ctx.Err() != nil && m.done.Killed:
				return nil, context.Cause(ctx)
			}
			return m.done, nil
		case <-ended:
			ended = nil
			e.proc.kill()
		case <-tick.C:
			if over != nil {
				continue
			}
			if over = w.look(); over != nil {
				e.proc.kill()
			}
		}
	}
}

// runnerProc is a runner from the daemon's side.
type runnerProc struct {
	cmd     *exec.Cmd
	conn    *net.UnixConn
	answers chan answer // one per command, and one last error
	ended   chan struct{}
}

type answer struct {
	done *done
	err  error
}

func (p *runnerProc) kill() { _, _ = p.conn.Write(newFrame(kindKill).frame()) }

// runnerStart bounds how long a runner may take until it is ready, the killing
// of what its predecessor left behind included.
const runnerStart = killPatience + 10*time.Second

// ready starts a runner unless there is one.
func (e *Executor) ready(ctx context.Context) error {
	if e.proc != nil {
		return nil
	}
	p, err := e.spawn()
	if err != nil {
		return fmt.Errorf("start a runner: %w", err)
	}
	e.proc = p
	e.sb.metrics.runners.Inc()
	timer := time.NewTimer(runnerStart)
	defer timer.Stop()
	select {
	case m := <-p.answers:
		err = m.err
		if err == nil && m.done.Failure != startOK {
			err = errors.New(m.done.Text)
		}
	case <-timer.C:
		err = errors.New("it was not ready in time")
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		return e.giveUp(fmt.Errorf("start a runner: %w", err))
	}
	return nil
}

func (e *Executor) spawn() (*runnerProc, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socketpair: %w", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "runner")
	defer theirs.Close()
	ours := os.NewFile(uintptr(fds[0]), "runner")
	c, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		return nil, err
	}
	p := &runnerProc{conn: c.(*net.UnixConn), answers: make(chan answer, 2), ended: make(chan struct{})}
	p.cmd = &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{"remex", "runner"}, Dir: "/",
		Env:        []string{runnerEnv + "=1", "GOMAXPROCS=2"},
		Stderr:     os.Stderr,
		ExtraFiles: []*os.File{theirs},
		// A session of its own: no terminal's signals, no terminal.
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	set := setup{UID: -1, OldSID: e.oldSID, Dir: e.sb.dir}
	if e.own {
		p.cmd.ExtraFiles = append(p.cmd.ExtraFiles, e.lse.f)
		set = setup{UID: e.uid, GID: e.uid, Keeper: e.sb.keeper.uid, Dir: e.sb.dir, Hide: e.sb.hide}
		if set.Hide != "" {
			p.cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWNS
		}
	}
	if err := p.cmd.Start(); err != nil {
		p.conn.Close()
		return nil, err
	}
	go p.read()
	if _, err := p.conn.Write(set.frame()); err != nil {
		p.stop()
		return nil, err
	}
	return p, nil
}

// read passes the runner's answers on until it ends. There are never more
// than the channel holds: a runner speaks when spoken to.
func (p *runnerProc) read() {
	defer close(p.ended)
	for {
		kind, body, err := readFrame(p.conn)
		a := answer{err: err}
		if err == nil {
			a.done = &done{}
			if kind == kindDone {
				a.err = a.done.decode(body)
			} else if kind != kindReady {
				a.err = fmt.Errorf("%w: kind %d", errFrame, kind)
			}
		}
		select {
		case p.answers <- a:
		default:
		}
		if a.err != nil {
			return
		}
	}
}

// stop ends a runner: it kills what it runs and exits when its socket closes,
// and is killed itself when it does not.
func (p *runnerProc) stop() {
	p.conn.Close()
	t := time.AfterFunc(runnerStart, func() { _ = p.cmd.Process.Kill() })
	defer t.Stop()
	_ = p.cmd.Wait() // its exit status tells nothing
	<-p.ended
}

// giveUp ends the runner, which is in an unknown state.
func (e *Executor) giveUp(err error) error {
	e.oldSID = e.proc.cmd.Process.Pid
	_ = e.proc.cmd.Process.Kill() // the next one clears up
	e.proc.stop()
	e.proc = nil
	e.sb.log.Warn("runner given up", "executor", strconv.Itoa(e.uid), "err", err)
	return err
}
