package sandbox

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// signaller reaches every process of the action that a runner runs.
type signaller interface{ signal(sig unix.Signal) }

// uidKiller signals all processes of one uid with a single kill(-1), which no
// fork can outrun. The kernel spares the caller's own process, and judges by
// the credentials of the calling thread: so one thread of the runner takes the
// action's uid as its effective one. Its real and saved uids are a third one,
// the keeper, under which nothing runs: with 0 there kill(-1) would reach every
// process of the machine, and with the action's own uid there an action could
// signal the runner.
type uidKiller struct {
	sigs chan unix.Signal
	done chan struct{}
}

func newUIDKiller(uid, keeper int) (*uidKiller, error) {
	k := &uidKiller{sigs: make(chan unix.Signal), done: make(chan struct{})}
	started := make(chan error)
	// Ends with the process: a thread that has given up its rights can serve
	// nothing else.
	go func() {
		runtime.LockOSThread()
		// Raw, so that it changes this thread alone.
		_, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(keeper), uintptr(uid), uintptr(keeper))
		if errno != 0 {
			started <- fmt.Errorf("take uid %d: %w", uid, errno)
			return
		}
		started <- nil
		for sig := range k.sigs {
			_ = unix.Kill(-1, sig)
			k.done <- struct{}{}
		}
	}()
	return k, <-started
}

func (k *uidKiller) signal(sig unix.Signal) {
	k.sigs <- sig
	<-k.done
}

// descendants signals the processes below the runner, found in /proc: for
// actions that share the daemon's uid.
type descendants struct{}

func (descendants) signal(sig unix.Signal) {
	if sig != unix.SIGKILL {
		for _, p := range below(os.Getpid()) {
			_ = unix.Kill(p, sig)
		}
		return
	}
	// Stopped first: what is stopped does not fork.
	stopped := make(map[int]bool)
	for range 100 {
		fresh := 0
		for _, p := range below(os.Getpid()) {
			if !stopped[p] {
				stopped[p] = true
				fresh++
				_ = unix.Kill(p, unix.SIGSTOP)
			}
		}
		if fresh == 0 {
			break
		}
	}
	for p := range stopped {
		_ = unix.Kill(p, unix.SIGKILL)
	}
}

// process is what /proc tells of one.
type process struct {
	pid, parent, session int
	zombie               bool
}

// processes lists all that /proc shows.
func processes() []process {
	d, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer d.Close()
	names, _ := d.Readdirnames(-1)
	var ps []process
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		b, err := os.ReadFile("/proc/" + name + "/stat")
		if err != nil {
			continue // it has ended
		}
		// pid (name) state parent group session; the name may hold anything.
		f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
		if len(f) < 4 {
			continue
		}
		p := process{pid: pid, zombie: f[0] == "Z" || f[0] == "X"}
		p.parent, _ = strconv.Atoi(f[1])
		p.session, _ = strconv.Atoi(f[3])
		ps = append(ps, p)
	}
	return ps
}

// below lists the live descendants of a process.
func below(root int) []int {
	children := make(map[int][]process)
	for _, p := range processes() {
		children[p.parent] = append(children[p.parent], p)
	}
	var pids []int
	queue := []int{root}
	for len(queue) > 0 {
		for _, p := range children[queue[0]] {
			queue = append(queue, p.pid)
			if !p.zombie {
				pids = append(pids, p.pid)
			}
		}
		queue = queue[1:]
	}
	return pids
}

// wait waits for one child.
func wait(pid int, status *unix.WaitStatus, usage *unix.Rusage) error {
	for {
		_, err := unix.Wait4(pid, status, unix.WALL, usage)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// reapOrphans takes the children that have ended: a runner inherits what its
// command leaves behind. It reports whether the main process was among them.
func reapOrphans(main int, status *unix.WaitStatus, usage *unix.Rusage) (bool, error) {
	for {
		var st unix.WaitStatus
		var ru unix.Rusage
		pid, err := unix.Wait4(-1, &st, unix.WNOHANG|unix.WALL, &ru)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return false, fmt.Errorf("wait for orphans: %w", err)
		case pid == 0:
			return false, nil
		case pid == main:
			*status, *usage = st, ru
			return true, nil
		}
	}
}

// reapAll kills until there are no children left. All that an action started
// is below the runner, so no children means that nothing of it lives; mostly
// that is so at once, and costs one system call.
func (r *runner) reapAll(patience time.Duration) error {
	pause := 100 * time.Microsecond
	deadline := monotonic() + int64(patience)
	for {
		pid, err := unix.Wait4(-1, nil, unix.WNOHANG|unix.WALL, nil)
		switch {
		case errors.Is(err, unix.ECHILD):
			return nil
		case errors.Is(err, unix.EINTR) || pid > 0:
			continue
		case err != nil:
			return fmt.Errorf("wait for descendants: %w", err)
		case monotonic() > deadline:
			return errors.New("a process of the action cannot be killed")
		}
		r.kill.signal(unix.SIGKILL)
		if pause > 10*time.Millisecond {
			descendants{}.signal(unix.SIGKILL) // whatever uid it has by now
		}
		time.Sleep(pause)
		pause = min(2*pause, 50*time.Millisecond)
	}
}

// clearUID ends what an earlier runner that died left under uid.
func clearUID(k signaller, uid int, patience time.Duration) error {
	return until(patience, func() bool {
		k.signal(unix.SIGKILL)
		for _, p := range processes() {
			var st unix.Stat_t
			if !p.zombie && p.pid != os.Getpid() && unix.Stat("/proc/"+strconv.Itoa(p.pid), &st) == nil && int(st.Uid) == uid {
				return false
			}
		}
		return true
	})
}

// clearSession ends what an earlier runner that died left in its session.
// What had left the session too is not found: the price of a shared uid.
func clearSession(sid int, patience time.Duration) error {
	if sid == 0 {
		return nil
	}
	return until(patience, func() bool {
		clear := true
		for _, p := range processes() {
			if !p.zombie && p.session == sid {
				clear = false
				_ = unix.Kill(p.pid, unix.SIGKILL)
			}
		}
		return clear
	})
}

func until(patience time.Duration, ok func() bool) error {
	for deadline := monotonic() + int64(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if monotonic() > deadline {
			return errors.New("a process of an earlier action cannot be killed")
		}
	}
	return nil
}
