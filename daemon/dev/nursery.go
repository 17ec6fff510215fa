package dev

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// A nursery starts the children of this process and sees to it that none of
// their own children outlive them.
//
// Everything happens on one OS thread: the kernel sends a child its parent's
// death signal when the *thread* that forked it ends. And it happens one after
// another: a child that was forked a moment ago and is not known yet must not
// be taken for an orphan.
type nursery struct {
	do   chan func()
	done chan struct{}
	// pids are the children that are alive, or not yet waited for.
	pids map[int]bool // touched on the nursery's thread alone
}

func newNursery() (*nursery, error) {
	// Orphans of the children become children of this process, so that it
	// can find and end them.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("become the reaper of orphans: %w", err)
	}
	n := &nursery{do: make(chan func()), done: make(chan struct{}), pids: map[int]bool{}}
	go func() {
		defer close(n.done)
		runtime.LockOSThread() // and never unlocked: the thread ends with the nursery
		for f := range n.do {
			f()
		}
	}()
	return n, nil
}

// close ends the nursery, whose children have all been waited for.
func (n *nursery) close() {
	n.call(n.sweepOrphans)
	close(n.do)
	<-n.done
}

func (n *nursery) call(f func()) {
	finished := make(chan struct{})
	n.do <- func() {
		defer close(finished)
		f()
	}
	<-finished
}

// start starts cmd in a process group of its own; it dies when we die.
func (n *nursery) start(cmd *exec.Cmd) (err error) {
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	n.call(func() {
		if err = cmd.Start(); err == nil {
			n.pids[cmd.Process.Pid] = true
		}
	})
	return err
}

// wait waits for a child, and for the end of everything that it started.
func (n *nursery) wait(cmd *exec.Cmd) error {
	pid := cmd.Process.Pid
	// While the child is not reaped, its process group's id is its own.
	var info unix.Siginfo
	for unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
	}
	_ = unix.Kill(-pid, unix.SIGKILL)
	err := cmd.Wait()
	n.call(func() {
		delete(n.pids, pid)
		n.sweepOrphans()
	})
	return err
}

// sweepOrphans kills the children of this process that it did not start, until
// there are none: each one's death may hand over more.
func (n *nursery) sweepOrphans() {
	for range 1000 {
		orphans := n.orphans()
		if len(orphans) == 0 {
			return
		}
		for _, pid := range orphans {
			_ = unix.Kill(pid, unix.SIGKILL)
			for {
				if _, err := unix.Wait4(pid, nil, 0, nil); err != unix.EINTR {
					break
				}
			}
		}
	}
}

func (n *nursery) orphans() []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err == nil && !n.pids[pid] && parent(pid) == os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids
}

// parent reads a process's parent from /proc, 0 when it is gone.
func parent(pid int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// pid (name) state ppid: the name may hold anything, parentheses too.
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) < 2 {
		return 0
	}
	ppid, _ := strconv.Atoi(string(fields[1]))
	return ppid
}
