package dev

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// stopWait is what a child has from SIGTERM to SIGKILL.
	stopWait = 10 * time.Second

	restartFirst = 500 * time.Millisecond
	restartMost  = 10 * time.Second
	// steady is how long a child must have run for its next crash to count as
	// the first again.
	steady = 30 * time.Second
	// maxStarts is how often a child may end before it was ever ready.
	maxStarts = 3
)

// child is one node, kept running.
type child struct {
	node
	cmd     func() *exec.Cmd
	nursery *nursery
	restart bool
	log     *slog.Logger
	out     *logFile
	started func() // told of each start, when pid is set

	pid atomic.Int64 // 0 while it does not run

	once  sync.Once
	ready chan struct{} // closed once it has been ready
}

// up notes that the child has been ready.
func (c *child) up() { c.once.Do(func() { close(c.ready) }) }

func (c *child) wasReady() bool {
	select {
	case <-c.ready:
		return true
	default:
		return false
	}
}

// Run keeps the child running until ctx ends, and stops it then. The error
// says why it cannot be kept running.
func (c *child) Run(ctx context.Context) error {
	pause, starts := restartFirst, 0
	for {
		began := time.Now()
		err := c.runOnce(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if starts++; !c.wasReady() && starts >= maxStarts {
			return fmt.Errorf("%s ended %d times before it was ready (%w); its log %s ends with:\n%s",
				c.Name, starts, err, c.Log, c.out.tail(2000))
		}
		if !c.restart && c.wasReady() {
			c.log.Warn("node ended, and is not started again", "node", c.Name, "err", err, "log", c.Log)
			<-ctx.Done()
			return nil
		}
		if time.Since(began) > steady {
			pause = restartFirst
		}
		c.log.Warn("node ended; starting it again", "node", c.Name, "err", err, "after", pause, "log", c.Log)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil
		}
		pause = min(2*pause, restartMost)
	}
}

// runOnce runs the child until it ends, or until ctx does.
func (c *child) runOnce(ctx context.Context) error {
	cmd := c.cmd()
	cmd.Stdout, cmd.Stderr = c.out, c.out
	cmd.WaitDelay = time.Second // should a descendant keep the log's pipe open
	if err := c.nursery.start(cmd); err != nil {
		return fmt.Errorf("start %s: %w", c.Name, err)
	}
	c.pid.Store(int64(cmd.Process.Pid))
	c.started()
	ended := make(chan struct{})
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		c.stop(ctx, cmd.Process, ended)
	}()
	err := c.nursery.wait(cmd)
	close(ended)
	<-stopped
	c.pid.Store(0)
	if err == nil {
		err = errors.New("exit status 0")
	}
	return err
}

// stop ends the process when ctx ends: politely, and then not.
func (c *child) stop(ctx context.Context, p *os.Process, ended <-chan struct{}) {
	select {
	case <-ended:
		return
	case <-ctx.Done():
	}
	// To the node alone: it stops what it started in its own order.
	_ = p.Signal(unix.SIGTERM)
	select {
	case <-ended:
	case <-time.After(stopWait):
		c.log.Warn("node does not stop; killing it", "node", c.Name, "after", stopWait, "log", c.Log)
		_ = p.Kill()
	}
}

// cleanEnviron is this process's environment without Remex's variables: the
// nodes get all their settings as flags. Each is to run on half of the cores,
// unless it is told otherwise: nodes that share a machine would else spend much
// of it on waking each other's threads.
func cleanEnviron() []string {
	env := []string{"GOMAXPROCS=" + strconv.Itoa(max(runtime.NumCPU()/2, 1))} // a later one counts
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "REMEX_") {
			env = append(env, kv)
		}
	}
	return env
}
