package sandbox

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The descriptors that a runner is born with.
const (
	runnerSocket = 3 // to the daemon; its end is the daemon's end
	runnerLease  = 4 // keeps the uid leased until the last of its actions is dead
)

// runnerEnv marks a runner's environment, so that a binary which does not call
// RunnerMain is told apart from one that does (see New).
const runnerEnv = "REMEX_RUNNER"

// Limits that every action inherits from its runner.
const (
	niceness     = 5    // a loaded worker must not become a silent one
	maxProcesses = 8192 // processes and threads of an executor with its own uid
	orphanPeriod = time.Second
	killPatience = 30 * time.Second
)

// RunnerMain is the whole life of `remex runner`: it serves the daemon on file
// descriptor 3 until that closes, and does not return. Nothing heavy may be
// done before it is called.
func RunnerMain() {
	// A command's death signal, niceness and no_new_privs belong to the thread
	// that forks it: it is always this one.
	runtime.LockOSThread()
	r := &runner{sock: os.NewFile(runnerSocket, "daemon")}
	err := r.serve() // io.EOF: the daemon wants no more
	if r.kill != nil {
		_ = r.reapAll(killPatience) // who is left has init for a parent now
	}
	if !errors.Is(err, io.EOF) {
		fmt.Fprintln(os.Stderr, "remex runner:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

type runner struct {
	sock *os.File
	set  setup
	kill signaller
	null int
}

// serve runs commands until it cannot, and always says why.
func (r *runner) serve() error {
	if err := r.prepare(); err != nil {
		_, _ = r.sock.Write((&done{Failure: startInfra, Text: err.Error()}).frame())
		return err
	}
	if _, err := r.sock.Write(newFrame(kindReady).frame()); err != nil {
		return err
	}
	for {
		kind, body, err := readFrame(r.sock)
		if err != nil {
			return err
		}
		switch kind {
		case kindKill: // of a command that had ended already
		case kindRun:
			var c command
			if err := c.decode(body); err != nil {
				return err
			}
			res, err := r.run(&c)
			if err != nil {
				return err
			}
			if _, err := r.sock.Write(res.frame()); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%w: kind %d", errFrame, kind)
		}
	}
}

func (r *runner) prepare() error {
	// Handled, not ignored: what is ignored stays so in the commands.
	signal.Notify(make(chan os.Signal, 1), unix.SIGHUP, unix.SIGINT, unix.SIGTERM, unix.SIGQUIT, unix.SIGPIPE)
	if err := unix.CloseRange(3, ^uint(0)>>1, unix.CLOSE_RANGE_CLOEXEC); err != nil && !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("close_range: %w", err)
	}
	unix.CloseOnExec(runnerSocket)
	unix.CloseOnExec(runnerLease)
	kind, body, err := readFrame(r.sock)
	if err != nil {
		return err
	}
	if kind != kindSetup {
		return fmt.Errorf("%w: kind %d instead of the setup", errFrame, kind)
	}
	if err := r.set.decode(body); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become a subreaper: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no_new_privs: %w", err)
	}
	_ = unix.Setpriority(unix.PRIO_PROCESS, 0, niceness)
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
	unix.Umask(0o022)
	if r.null, err = unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return fmt.Errorf("open /dev/null: %w", err)
	}
	if r.set.Hide != "" {
		if err := exposeDir(r.set.Hide, r.set.Dir); err != nil {
			return err
		}
	}
	if r.set.UID < 0 {
		r.kill = descendants{}
		return clearSession(r.set.OldSID, killPatience)
	}
	_ = unix.Setrlimit(unix.RLIMIT_NPROC, &unix.Rlimit{Cur: maxProcesses, Max: maxProcesses})
	k, err := newUIDKiller(r.set.UID, r.set.Keeper)
	if err != nil {
		return err
	}
	r.kill = k
	return clearUID(k, r.set.UID, killPatience)
}

// run runs one command. An error means that the runner is of no further use.
func (r *runner) run(c *command) (*done, error) {
	res := &done{}
	pid, pidfd, err := r.start(c, res)
	if err != nil || res.Failure != startOK {
		return res, err
	}
	defer unix.Close(pidfd)
	var status unix.WaitStatus
	var usage unix.Rusage
	exited, err := r.attend(c, pid, pidfd, &status, &usage, res)
	if err != nil {
		return nil, err // the daemon is gone; RunnerMain ends what is left
	}
	if !exited {
		r.kill.signal(unix.SIGKILL)
		if err := wait(pid, &status, &usage); err != nil {
			return nil, fmt.Errorf("wait for the command: %w", err)
		}
	}
	res.End = monotonic()
	if err := r.reapAll(killPatience); err != nil {
		return nil, err
	}
	res.Code = status.ExitStatus()
	if status.Signaled() {
		res.Signal = int(status.Signal())
		res.Code = 128 + res.Signal
	}
	res.User = time.Duration(usage.Utime.Nano())
	res.Sys = time.Duration(usage.Stime.Nano())
	res.MaxRSS = usage.Maxrss << 10
	return res, nil
}

// attend waits for the end of the command: its own, the one by time, or the
// one that the daemon asks for. It reports whether the main process was
// waited for.
func (r *runner) attend(c *command, pid, pidfd int, status *unix.WaitStatus, usage *unix.Rusage, res *done) (bool, error) {
	var deadline int64
	if c.Timeout > 0 {
		deadline = res.Start + int64(c.Timeout)
	}
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}, {Fd: runnerSocket, Events: unix.POLLIN}}
	for {
		pause := orphanPeriod
		if deadline != 0 {
			pause = min(pause, max(0, time.Duration(deadline-monotonic())))
		}
		// Rounded up, lest the last millisecond be spent spinning.
		n, err := unix.Poll(fds, int((pause+time.Millisecond-1)/time.Millisecond))
		if err != nil && !errors.Is(err, unix.EINTR) {
			return false, fmt.Errorf("poll: %w", err)
		}
		if n > 0 && fds[0].Revents != 0 {
			return true, wait(pid, status, usage)
		}
		if n > 0 && fds[1].Revents != 0 {
			kind, _, err := readFrame(r.sock)
			if err != nil {
				return false, err
			}
			if kind == kindKill {
				res.Killed = true
				return false, nil
			}
			return false, fmt.Errorf("%w: kind %d while a command runs", errFrame, kind)
		}
		if exited, err := reapOrphans(pid, status, usage); exited || err != nil {
			return exited, err
		}
		if deadline != 0 && monotonic() >= deadline {
			if res.TimedOut || c.Grace <= 0 {
				res.TimedOut = true
				return false, nil
			}
			res.TimedOut = true
			r.kill.signal(unix.SIGTERM)
			r.kill.signal(unix.SIGCONT) // a stopped process hears nothing
			deadline = monotonic() + int64(c.Grace)
		}
	}
}

// start forks the command. What its author did wrong stands in res.
func (r *runner) start(c *command, res *done) (pid, pidfd int, err error) {
	path, why := lookUp(c)
	if why != "" {
		res.Failure, res.Text = startUser, why
		return 0, -1, nil
	}
	var out [2]int
	for i, name := range [2]string{c.Stdout, c.Stderr} {
		out[i], err = unix.Open(name, unix.O_WRONLY|unix.O_APPEND|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		if err != nil {
			res.Failure, res.Text = startInfra, fmt.Sprintf("open %s: %v", name, err)
			return 0, -1, nil
		}
		defer unix.Close(out[i])
	}
	attr := &syscall.ProcAttr{
		Dir:   c.Cwd,
		Env:   c.Env,
		Files: []uintptr{uintptr(r.null), uintptr(out[0]), uintptr(out[1])},
		Sys:   &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL, PidFD: &pidfd},
	}
	if r.set.UID >= 0 {
		attr.Sys.Credential = &syscall.Credential{Uid: uint32(r.set.UID), Gid: uint32(r.set.GID)}
	}
	argv := c.Argv
	for try := 0; ; try++ {
		res.Start = monotonic()
		pid, err = syscall.ForkExec(path, argv, attr)
		switch {
		case err == nil && pidfd < 0:
			r.kill.signal(unix.SIGKILL)
			return 0, -1, errors.New("this kernel has no pidfd")
		case err == nil:
			return pid, pidfd, nil
		case errors.Is(err, unix.ENOEXEC) && len(argv) == len(c.Argv):
			// A script without an interpreter line: execvp, and so every
			// build tool's local execution, gives it to the shell.
			argv = append([]string{"/bin/sh", path}, c.Argv[1:]...)
			path = "/bin/sh"
		case errors.Is(err, unix.ETXTBSY) && try < 50:
			// Somebody who had the file open for writing forked just now.
			time.Sleep(time.Millisecond)
		case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.ENOMEM) || errors.Is(err, unix.ETXTBSY):
			res.Failure, res.Text = startInfra, fmt.Sprintf("start %q: %v", c.Argv[0], err)
			return 0, -1, nil
		default:
			res.Failure, res.Text = startUser, fmt.Sprintf("cannot run %q: %v", c.Argv[0], err)
			return 0, -1, nil
		}
	}
}

// monotonic reads the clock that all processes of a machine share.
func monotonic() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // cannot fail
	return ts.Nano()
}
