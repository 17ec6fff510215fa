package e2e

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A build of sleepy actions during which something dies: every action's output
// must be there at the end, and Bazel must not have noticed.
func buildThrough(t *testing.T, c *remexCluster, disturb func(t *testing.T)) {
	t.Helper()
	const actions = 48
	b := newBazel(t, sleepy(t, actions, "0.5"), c.Endpoint)
	unique(b)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	var out []byte
	var err error
	var wg sync.WaitGroup
	wg.Go(func() { out, err = b.command(ctx, "build", "//...").CombinedOutput() })
	eventually(t, "actions of the build run", time.Minute, func() bool { return len(running(t, `sleep 0\.5`)) >= 4 })
	disturb(t)
	wg.Wait()
	if err != nil {
		t.Fatalf("the build failed: %v\n%s", err, out)
	}
	for i := range actions {
		if got := string(b.output(fmt.Sprintf("bazel-bin/g%d.txt", i))); got != fmt.Sprintln(i) {
			t.Errorf("output %d holds %q", i, got)
		}
	}
	// An action whose result came when nobody was there to take it is found in
	// the cache when it is asked for again.
	if how := processes(t, string(out)); how["remote"]+how["remote cache hit"] != actions {
		t.Errorf("actions ran like this: %v", how)
	}
	// The next build finds everything, whatever died.
	b.clean()
	how := processes(t, b.run(0, "build", "//..."))
	if how["remote cache hit"] != actions {
		t.Errorf("the rebuild's actions ran like this: %v", how)
	}
}

func kill(t *testing.T, n node) {
	t.Helper()
	if err := syscall.Kill(n.PID, syscall.SIGKILL); err != nil {
		t.Fatalf("kill %s: %v", n.Name, err)
	}
}

func TestBuildSurvivesAWorkersDeath(t *testing.T) {
	c := fresh(t, "--schedulers=2", "--workers=3", "--executors=2", "--restart=false")
	buildThrough(t, c, func(t *testing.T) { kill(t, c.role("worker")[1]) })
}

func TestBuildSurvivesASchedulersDeath(t *testing.T) {
	for i, name := range []string{"first", "second"} {
		t.Run(name, func(t *testing.T) {
			c := fresh(t, "--schedulers=2", "--workers=3", "--executors=2", "--restart=false")
			buildThrough(t, c, func(t *testing.T) { kill(t, c.role("scheduler")[i]) })
		})
	}
}

func TestBuildSurvivesProcessesThatComeBack(t *testing.T) {
	c := fresh(t, "--schedulers=2", "--workers=3", "--executors=2")
	buildThrough(t, c, func(t *testing.T) {
		kill(t, c.role("worker")[0])
		kill(t, c.role("scheduler")[0])
	})
	eventually(t, "the dead are replaced", 30*time.Second, func() bool {
		out, _, code := c.cli(t, "status")
		return code == 0 && strings.Count(out, "ready") >= 5
	})
}

// More than is promised, but a supervisor that starts them again is what every
// cloud has.
func TestBuildSurvivesAllSchedulersDeath(t *testing.T) {
	c := fresh(t, "--schedulers=2", "--workers=3", "--executors=2")
	buildThrough(t, c, func(t *testing.T) {
		for _, n := range c.role("scheduler") {
			kill(t, n)
		}
	})
}

// A cluster that is stopped and started again serves what it knew.
func TestRestartIsWarm(t *testing.T) {
	dir := newDir(t)
	c := startIn(t, dir, "--schedulers=2", "--workers=3", "--executors=2")
	b := newBazel(t, example, c.Endpoint)
	b.run(0, "build", "//...")
	if err := c.stop(); err != nil {
		t.Fatal(err)
	}
	c = startIn(t, dir, "--schedulers=2", "--workers=3", "--executors=2")
	b.clean()
	b.flags[len(b.flags)-1] = "--remote_executor=" + c.Endpoint
	how := processes(t, b.run(0, "build", "//..."))
	if how["remote"] > 0 || how["remote cache hit"] < 10 {
		t.Errorf("actions ran like this: %v", how)
	}
}

func TestTwoClustersSideBySide(t *testing.T) {
	one := fresh(t, "--schedulers=1", "--workers=2", "--executors=1")
	two := fresh(t, "--schedulers=1", "--workers=2", "--executors=1")
	for _, c := range []*remexCluster{one, two} {
		out, errs, code := c.cli(t, "exec", "--", "echo", "here")
		if code != 0 || out != "here\n" {
			t.Errorf("exit code %d, printed %q and %q", code, out, errs)
		}
		status, _, _ := c.cli(t, "status")
		if n := strings.Count(status, "worker-"); n < 2 {
			t.Errorf("status:\n%s", status)
		}
	}
}
