package dev

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// clusterFile is DIR/cluster.json, by which scripts find the nodes. It is there
// while the cluster runs.
type clusterFile struct {
	path     string
	endpoint string

	mu    sync.Mutex // guards ready, and keeps writers in order; held across the write
	ready bool
}

// description is what the file holds.
type description struct {
	Endpoint string `json:"endpoint"`
	PID      int    `json:"pid"` // of the supervisor
	Ready    bool   `json:"ready"`
	Nodes    []node `json:"nodes"`
}

func newClusterFile(dir, endpoint string) *clusterFile {
	return &clusterFile{path: filepath.Join(dir, "cluster.json"), endpoint: endpoint}
}

func (f *clusterFile) setReady() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ready = true
}

func (f *clusterFile) write(children []*child) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := description{Endpoint: f.endpoint, PID: os.Getpid(), Ready: f.ready}
	for _, ch := range children {
		n := ch.node
		n.PID = int(ch.pid.Load())
		d.Nodes = append(d.Nodes, n)
	}
	b, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return err
	}
	return renameio.WriteFile(f.path, append(b, '\n'), 0o644)
}

func (f *clusterFile) remove() error {
	if err := os.Remove(f.path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// lockDir makes the directory, and keeps a second cluster from it.
func lockDir(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			pid, _ := os.ReadFile(path)
			return nil, fmt.Errorf("another cluster runs on %s (pid %s): stop it, or choose another --dir", dir, strings.TrimSpace(string(pid)))
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	if err := errors.Join(f.Truncate(0), func() error { _, err := fmt.Fprintln(f, os.Getpid()); return err }()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() { _ = f.Close() }, nil
}

// welcome tells a person what runs and what to do with it.
func (c *cluster) welcome() string {
	var b strings.Builder
	fmt.Fprintf(&b, "\nRemex is ready on %s\n\n", c.file.endpoint)
	for _, ch := range c.children {
		host, _, _ := net.SplitHostPort(ch.Cluster)
		fmt.Fprintf(&b, "  %-14s pid %-8d %-16s http://%s\n", ch.Name, ch.pid.Load(), host, ch.Ops)
	}
	at := ""
	if c.file.endpoint != "grpc://127.0.0.1:8980" {
		at = " --cluster " + c.file.endpoint
	}
	fmt.Fprintf(&b, `
Build on it:      bazel build --remote_executor=%s --jobs=%d //...
For a .bazelrc:   remex bazelrc%s
Look at it:       remex status%s
Try it:           remex exec%s -- uname -a

Logs are in %s, and data stay in %s.
Ctrl-C stops the cluster.
`, c.file.endpoint, max(8, 4*c.o.Workers*c.o.Executors), at, at, at, filepath.Join(c.o.Dir, "logs"), c.o.Dir)
	return b.String()
}
