package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// description is what `remex dev` writes about itself.
type description struct {
	Endpoint string `json:"endpoint"`
	PID      int    `json:"pid"`
	Ready    bool   `json:"ready"`
	Nodes    []struct {
		Name string `json:"name"`
		Role string `json:"role"`
		PID  int    `json:"pid"`
		Ops  string `json:"ops"`
	} `json:"nodes"`
}

// startCluster starts one scheduler and two workers with two copies of every
// blob, which is the least that keeps Remex's promises.
func startCluster(ctx context.Context, remex string, executors int) (*server, func(), error) {
	dir, err := os.MkdirTemp("/var/tmp", "remex-bench")
	if err != nil {
		return nil, nil, err
	}
	if err := os.Chmod(dir, 0o755); err != nil { // actions have uids of their own
		return nil, nil, err
	}
	cmd := exec.CommandContext(ctx, remex, "dev", "--listen=127.0.0.1:0", "--dir="+dir,
		"--schedulers=2", "--workers=2", "--executors="+strconv.Itoa(executors))
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 30 * time.Second
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	end := func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		_ = os.RemoveAll(dir)
	}
	d, err := awaitCluster(dir)
	if err != nil {
		end()
		return nil, nil, fmt.Errorf("%w\n%s", err, log.Bytes())
	}
	s := &server{name: "remex", addr: strings.TrimPrefix(d.Endpoint, "grpc://"), dir: dir, pids: []int{d.PID}}
	for _, n := range d.Nodes {
		s.pids = append(s.pids, n.PID)
		s.pids = append(s.pids, children(n.PID)...)
	}
	return s, end, nil
}

func awaitCluster(dir string) (description, error) {
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if d, err := describe(dir); err == nil && d.Ready {
			return d, nil
		}
	}
	return description{}, fmt.Errorf("the cluster in %s is not ready after a minute", dir)
}

func describe(dir string) (description, error) {
	var d description
	b, err := os.ReadFile(filepath.Join(dir, "cluster.json"))
	if err != nil {
		return d, err
	}
	return d, json.Unmarshal(b, &d)
}

// children are the processes that pid started: a worker's runners.
func children(pid int) []int {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	var all []int
	for _, t := range tasks {
		b, _ := os.ReadFile(t)
		for f := range strings.FieldsSeq(string(b)) {
			if n, err := strconv.Atoi(f); err == nil {
				all = append(all, n)
			}
		}
	}
	return all
}

// cpuTime is what the processes themselves have used so far; what their
// children used, the actions, is not in it.
func cpuTime(pids []int) time.Duration {
	var ticks int64
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		// Fields count from after the command's name, which may hold anything.
		f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		for _, i := range []int{11, 12} { // utime, stime
			n, _ := strconv.ParseInt(f[i], 10, 64)
			ticks += n
		}
	}
	return time.Duration(ticks) * time.Second / 100 // USER_HZ is 100 on Linux
}

// resident is the memory in bytes that a process holds, the pages of the binary
// among it.
func resident(pid int) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			n, _ := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
			return n << 10
		}
	}
	return 0
}
