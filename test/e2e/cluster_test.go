// Package e2e runs Remex as its users do: `remex dev` as a process of its own,
// real Bazel, the command line, and clients that misbehave. REMEX names the
// binary; `make e2e` sets it.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// node is one process of a cluster.
type node struct {
	Name    string `json:"name"`
	Role    string `json:"role"`
	PID     int    `json:"pid"`
	Public  string `json:"public"`
	Cluster string `json:"cluster"`
	Ops     string `json:"ops"`
	Dir     string `json:"dir"`
	Log     string `json:"log"`
}

// remexCluster is a running `remex dev`.
type remexCluster struct {
	Endpoint string `json:"endpoint"`
	PID      int    `json:"pid"`
	Ready    bool   `json:"ready"`
	Nodes    []node `json:"nodes"`

	dir  string
	cmd  *exec.Cmd
	out  bytes.Buffer
	once sync.Once
	err  error
}

func remex(tb testing.TB) string {
	tb.Helper()
	path := os.Getenv("REMEX")
	if path == "" {
		tb.Fatal("REMEX does not name the binary under test: run `make e2e`, or `REMEX=$PWD/bin/remex go test ./test/e2e`")
	}
	return path
}

// start brings a cluster up in dir, on any port, and waits until it is ready.
func start(dir string, flags ...string) (*remexCluster, error) {
	c := &remexCluster{dir: dir}
	args := append([]string{"dev", "--listen=127.0.0.1:0", "--dir=" + dir}, flags...)
	c.cmd = exec.Command(os.Getenv("REMEX"), args...)
	c.cmd.Stdout, c.cmd.Stderr = &c.out, &c.out
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if c.read() == nil && c.Ready && c.PID == c.cmd.Process.Pid {
			return c, nil
		}
	}
	return nil, fmt.Errorf("the cluster is not ready after a minute: %w\n%s", c.stop(), c.out.Bytes())
}

// read takes in cluster.json, which changes when processes are replaced.
func (c *remexCluster) read() error {
	b, err := os.ReadFile(filepath.Join(c.dir, "cluster.json"))
	if err != nil {
		return err
	}
	return json.Unmarshal(b, c)
}

// stop ends the cluster as Ctrl-C does, and reports what it left behind.
func (c *remexCluster) stop() error {
	c.once.Do(func() { c.err = c.end() })
	return c.err
}

func (c *remexCluster) end() error {
	family := descendants(c.cmd.Process.Pid)
	_ = c.cmd.Process.Signal(os.Interrupt)
	kill := time.AfterFunc(45*time.Second, func() { _ = c.cmd.Process.Kill() })
	defer kill.Stop()
	if err := c.cmd.Wait(); err != nil {
		return fmt.Errorf("remex dev: %w\n%s", err, c.out.Bytes())
	}
	for _, pid := range family {
		if err := syscall.Kill(pid, 0); err == nil {
			return fmt.Errorf("process %d is left behind: %s", pid, commandLine(pid))
		}
	}
	if _, err := os.Stat(filepath.Join(c.dir, "cluster.json")); err == nil {
		return errors.New("cluster.json is left behind")
	}
	return nil
}

func (c *remexCluster) role(role string) []node {
	var ns []node
	for _, n := range c.Nodes {
		if n.Role == role {
			ns = append(ns, n)
		}
	}
	return ns
}

func (c *remexCluster) addr() string { return strings.TrimPrefix(c.Endpoint, "grpc://") }

// logs are the ends of the nodes' logs, for a test that failed.
func (c *remexCluster) logs() string {
	var b strings.Builder
	for _, n := range c.Nodes {
		text, _ := os.ReadFile(n.Log)
		fmt.Fprintf(&b, "--- %s\n%s\n", n.Name, text[max(0, len(text)-3000):])
	}
	return b.String()
}

// fresh is a cluster of the test's own.
func fresh(t *testing.T, flags ...string) *remexCluster {
	t.Helper()
	return startIn(t, newDir(t), flags...)
}

// newDir is a directory that every uid may look into, as actions run under
// other ones. t.TempDir's parents are closed to them.
func newDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "remex-e2e") //nolint:usetesting // see above
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func startIn(t *testing.T, dir string, flags ...string) *remexCluster {
	t.Helper()
	remex(t)
	c, err := start(dir, flags...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(c.logs())
		}
	})
	return c
}

var common struct {
	once    sync.Once
	cluster *remexCluster
	dir     string
	err     error
}

// shared is a cluster of 2 schedulers and 3 workers that most tests use. Tests
// that kill or fill something have their own.
func shared(t *testing.T) *remexCluster {
	t.Helper()
	remex(t)
	common.once.Do(func() {
		if common.dir, common.err = os.MkdirTemp("/var/tmp", "remex-e2e"); common.err != nil { //nolint:usetesting // outlives the test
			return
		}
		if common.err = os.Chmod(common.dir, 0o755); common.err == nil {
			common.cluster, common.err = start(common.dir, "--schedulers=2", "--workers=3", "--executors=2")
		}
	})
	if common.err != nil {
		t.Fatal(common.err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(common.cluster.logs())
		}
	})
	return common.cluster
}

func TestMain(m *testing.M) {
	code := m.Run()
	if common.cluster != nil {
		if err := common.cluster.stop(); err != nil {
			fmt.Fprintln(os.Stderr, "FAIL: the shared cluster:", err)
			code = 1
		}
	}
	if common.dir != "" {
		os.RemoveAll(common.dir)
	}
	os.Exit(code)
}

// descendants are all processes below pid.
func descendants(pid int) []int {
	children := map[int][]int{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		id, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		parent, _ := strconv.Atoi(f[1])
		children[parent] = append(children[parent], id)
	}
	var all []int
	for next := []int{pid}; len(next) > 0; next = next[1:] {
		all = append(all, children[next[0]]...)
		next = append(next, children[next[0]]...)
	}
	return all
}

func commandLine(pid int) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return string(bytes.ReplaceAll(b, []byte{0}, []byte{' '}))
}

// running are the processes whose command line matches.
func running(t *testing.T, pattern string) []int {
	t.Helper()
	re := regexp.MustCompile(pattern)
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, d := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(d))
		if re.MatchString(commandLine(pid)) {
			pids = append(pids, pid)
		}
	}
	return slices.DeleteFunc(pids, func(pid int) bool { return pid == os.Getpid() })
}

// eventually waits until ok, which it asks often, or ends the test.
func eventually(t *testing.T, what string, within time.Duration, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(within); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", within, what)
		}
	}
}

// cli runs the remex command line against a cluster.
func (c *remexCluster) cli(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, remex(t), args...)
	cmd.Env = append(os.Environ(), "REMEX_CLUSTER="+c.Endpoint)
	cmd.Dir = t.TempDir()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	return out.String(), errs.String(), exitCode(err)
}
