package config

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

// Scheduler is what `remex scheduler` is told.
type Scheduler struct {
	Node

	// ListenPublic serves the Remote Execution API.
	ListenPublic string

	// StreamWindow is how many bytes of an upload may be under way to the
	// scheduler before it has taken them.
	StreamWindow ByteSize
	// ActionCacheSize bounds the entries held in memory.
	ActionCacheSize ByteSize
	// ActionCacheReplicas is on how many schedulers each entry is.
	ActionCacheReplicas int

	// MaxQueue is how many Execute calls may wait on this scheduler.
	MaxQueue int
	// MaxTimeout is the longest timeout that an action may ask for, and
	// that of an action which asks for none.
	MaxTimeout time.Duration

	// RequestProperties are further platform properties that tell a worker how
	// to run an action and exclude none.
	RequestProperties []string
	// ResourceProperties are further platform properties that are numbers, of
	// which a worker has to have at least so much.
	ResourceProperties []string
	// EmptyPools are pools that may have no worker yet: actions for them wait
	// instead of being refused. ParsePool reads one.
	EmptyPools []string
}

// ParsePool takes apart "NAME" or "NAME:PROPERTY=VALUE;PROPERTY=VALUE". A pool
// without properties has those of this machine.
func ParsePool(s string) (name string, props map[string][]string, err error) {
	name, rest, ok := strings.Cut(s, ":")
	if !nodeName.MatchString(name) {
		return "", nil, fmt.Errorf("%q is no name for a pool: use up to 63 letters, digits, dots, dashes", name)
	}
	if !ok {
		return name, hostProperties(runtime.GOARCH), nil
	}
	set := properties("", &props, "")
	if err := set.set(strings.Split(rest, ";")); err != nil {
		return "", nil, err
	}
	return name, props, nil
}

// DefaultScheduler is a scheduler without any settings.
func DefaultScheduler() Scheduler {
	return Scheduler{
		Node:                defaultNode("scheduler"),
		ListenPublic:        loopback(PublicPort),
		StreamWindow:        128 * KiB,
		ActionCacheSize:     1 * GiB,
		ActionCacheReplicas: 3,
		MaxQueue:            100_000,
		MaxTimeout:          24 * time.Hour,
	}
}

func (c *Scheduler) settings() []setting {
	return append(c.Node.settings(),
		text("listen-public", &c.ListenPublic, "host:port on which clients reach the Remote Execution API"),
		size("stream-window", &c.StreamWindow, "bytes that one upload may have under way; raise it for clients far away, whose uploads move this much a round trip. Three eighths of stream-budget are for such windows"),
		size("action-cache-size", &c.ActionCacheSize, "memory for action-cache entries; the least recently used go first"),
		number("action-cache-replicas", &c.ActionCacheReplicas, "on how many schedulers each action-cache entry is"),
		number("max-queue", &c.MaxQueue, "Execute calls that may wait; more are refused. Raise it for very large builds"),
		duration("max-timeout", &c.MaxTimeout, "longest timeout of an action, and that of actions which name none"),
		list("request-properties", &c.RequestProperties, "further platform properties that exclude no worker; NAME* stands for all that begin so"),
		list("resource-properties", &c.ResourceProperties, "further platform properties of which a worker must have at least so much, beside cores, memory and min-*"),
		list("empty-pools", &c.EmptyPools, "pools that may have no worker yet, as NAME or NAME:PROPERTY=VALUE;...: actions for them wait"),
	)
}

func (c *Scheduler) check() problems {
	ps := c.Node.check()
	ps.listeners([]string{"listen-public", "listen-cluster", "listen-gossip", "listen-ops"},
		[]string{c.ListenPublic, c.ListenCluster, c.ListenGossip, c.ListenOps})
	ps.add(c.StreamWindow < 64*KiB || c.StreamWindow > 16*MiB, fmt.Sprintf("%s is not between 64KiB and 16MiB", c.StreamWindow), "stream-window")
	ps.add(c.StreamWindow > c.StreamBudget/256, fmt.Sprintf("windows of %s leave a stream budget of %s too few uploads at a time", c.StreamWindow, c.StreamBudget), "stream-window", "stream-budget")
	ps.add(c.ActionCacheSize < MiB, fmt.Sprintf("%s is less than 1MiB", c.ActionCacheSize), "action-cache-size")
	ps.add(c.ActionCacheReplicas < 1 || c.ActionCacheReplicas > 9, fmt.Sprintf("%d is not between 1 and 9", c.ActionCacheReplicas), "action-cache-replicas")
	ps.add(c.MaxQueue < 1, fmt.Sprintf("%d is less than 1", c.MaxQueue), "max-queue")
	ps.add(c.MaxTimeout < time.Second, fmt.Sprintf("%s is less than 1s", c.MaxTimeout), "max-timeout")
	for _, p := range c.ResourceProperties {
		ps.add(slices.Contains(c.RequestProperties, p), fmt.Sprintf("%q cannot be both", p), "resource-properties", "request-properties")
	}
	for _, p := range c.EmptyPools {
		_, _, err := ParsePool(p)
		ps.add(err != nil, fmt.Sprint(err), "empty-pools")
	}
	return ps
}

// Validate reports everything that is wrong with c, nil when nothing is.
func (c Scheduler) Validate() error { return c.check().err() }

// Flags declares c's settings on fs; the loader then fills c.
func (c *Scheduler) Flags(fs *pflag.FlagSet) *Loader {
	w := DefaultWorker()
	return newLoader("scheduler", "worker", c.settings(), w.settings(), c.check, fs)
}

// Worker is what `remex worker` is told.
type Worker struct {
	Node

	// Dir holds everything that the worker keeps.
	Dir string

	// Pool is the group of like workers that this one belongs to.
	Pool string
	// Executors is how many actions run at a time; with 0 the worker only
	// stores blobs.
	Executors int
	// Properties are what actions may ask for, by name.
	Properties map[string][]string

	// DiskSize bounds the bytes of blobs.
	DiskSize ByteSize
	// DiskReserve is kept free on the file system.
	DiskReserve ByteSize
	// MinAge is how long a blob is kept at least after its last use.
	MinAge time.Duration
	// RepairRate bounds the bytes a second that the disk fetches from others to
	// be whole; 0 means that only the work of others does.
	RepairRate ByteSize
	// ScrubRate bounds the bytes a second that are read to find rotten copies,
	// and ScrubEvery is the rest after each round; a rate of 0 means never.
	ScrubRate  ByteSize
	ScrubEvery time.Duration
	// JournalSize bounds the action-cache entries kept on disk; 0 means a
	// 32nd of DiskSize, at most 256 MiB. Journal is the answer.
	JournalSize ByteSize

	// ActionUIDBase is the uid of the first executor's actions; ignored
	// unless the worker runs as root.
	ActionUIDBase int
	// StdoutLimit is how much an action's stdout and stderr may each hold.
	StdoutLimit ByteSize
	// ActionBytes and ActionInodes bound what an action may write.
	ActionBytes  ByteSize
	ActionInodes int
}

// DefaultWorker is a worker without any settings.
func DefaultWorker() Worker {
	return Worker{
		Node:          defaultNode("worker"),
		Dir:           defaultDir(),
		Pool:          "default",
		Executors:     runtime.NumCPU(),
		Properties:    hostProperties(runtime.GOARCH),
		DiskSize:      50 * GiB,
		DiskReserve:   2 * GiB,
		MinAge:        3 * time.Hour,
		ScrubRate:     MiB,
		ScrubEvery:    time.Hour,
		ActionUIDBase: 200_000,
		StdoutLimit:   64 * MiB,
		ActionBytes:   16 * GiB,
		ActionInodes:  1_000_000,
	}
}

// defaultDir is the place that the system keeps for such data.
func defaultDir() string {
	if os.Geteuid() == 0 {
		return "/var/lib/remex"
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	return filepath.Join(cache, "remex")
}

// hostProperties are those that every client may ask of this machine, in the
// Remote Execution API's spelling.
func hostProperties(goarch string) map[string][]string {
	isa := map[string]string{"amd64": "x86-64", "arm64": "arm-a64"}[goarch]
	if isa == "" {
		isa = goarch
	}
	return map[string][]string{"OSFamily": {"Linux"}, "ISA": {isa}}
}

func (c *Worker) settings() []setting {
	return append(c.Node.settings(),
		text("dir", &c.Dir, "directory that holds everything the worker keeps; of this worker alone"),
		text("pool", &c.Pool, "the group of like workers that this one belongs to"),
		number("executors", &c.Executors, "actions that run at a time; 0 makes a worker that only stores blobs"),
		properties("properties", &c.Properties, "what actions may ask for; a name may have several values"),
		size("disk-size", &c.DiskSize, "bytes of blobs to keep; the least recently used go first"),
		size("disk-reserve", &c.DiskReserve, "bytes kept free on the file system"),
		duration("min-age", &c.MinAge, "how long a blob stays at least after its last use; clients rely on 3h"),
		size("repair-rate", &c.RepairRate, "bytes a second that the disk fetches at most after a loss or a change of the cluster; 0 leaves it to how busy the others are"),
		size("scrub-rate", &c.ScrubRate, "bytes a second that are read to find rotten copies; the default takes a week for 500GB; 0 means never"),
		duration("scrub-every", &c.ScrubEvery, "how long to rest after all blobs have been looked at for rot"),
		size("journal-size", &c.JournalSize, "bytes of action-cache entries kept on disk, out of disk-size; 0 means a 32nd of it, at most 256MiB"),
		number("action-uid-base", &c.ActionUIDBase, "uid of the first executor's actions, the next ones follow; ignored unless run as root"),
		size("stdout-limit", &c.StdoutLimit, "bytes of stdout, and of stderr, that an action may print; the rest is dropped"),
		size("action-bytes", &c.ActionBytes, "bytes that an action may write before it is killed"),
		number("action-inodes", &c.ActionInodes, "files that an action may make before it is killed"),
	)
}

func (c *Worker) check() problems {
	ps := c.Node.check()
	ps.listeners([]string{"listen-cluster", "listen-gossip", "listen-ops"},
		[]string{c.ListenCluster, c.ListenGossip, c.ListenOps})
	ps.add(c.Dir == "", "must not be empty", "dir")
	ps.add(!nodeName.MatchString(c.Pool), fmt.Sprintf("%q is no name for a pool: use up to 63 letters, digits, dots, dashes", c.Pool), "pool")
	ps.add(c.Executors < 0 || c.Executors > 4096, fmt.Sprintf("%d is not between 0 and 4096", c.Executors), "executors")
	ps.add(c.DiskSize < 64*MiB, fmt.Sprintf("%s is less than 64MiB", c.DiskSize), "disk-size")
	ps.add(c.RepairRate > 0 && c.RepairRate < MiB, fmt.Sprintf("%s a second would never end: use at least 1MiB, or 0", c.RepairRate), "repair-rate")
	ps.add(c.ScrubEvery < 0, fmt.Sprintf("%s is negative", c.ScrubEvery), "scrub-every")
	ps.add(c.MinAge < 0, fmt.Sprintf("%s is negative", c.MinAge), "min-age")
	ps.add(c.JournalSize != 0 && c.JournalSize < MiB, fmt.Sprintf("%s is less than 1MiB", c.JournalSize), "journal-size")
	ps.add(c.JournalSize >= c.DiskSize, fmt.Sprintf("a journal of %s leaves nothing of a disk of %s", c.JournalSize, c.DiskSize), "journal-size", "disk-size")
	ps.add(c.ActionUIDBase < 1, fmt.Sprintf("%d would run actions as root", c.ActionUIDBase), "action-uid-base")
	ps.add(int64(c.ActionUIDBase)+int64(max(c.Executors, 0)) >= math.MaxInt32, "uids end at 2147483646", "action-uid-base")
	ps.add(c.StdoutLimit < KiB, fmt.Sprintf("%s is less than 1KiB", c.StdoutLimit), "stdout-limit")
	ps.add(c.ActionBytes < MiB, fmt.Sprintf("%s is less than 1MiB", c.ActionBytes), "action-bytes")
	ps.add(c.ActionInodes < 16, fmt.Sprintf("%d is less than 16", c.ActionInodes), "action-inodes")
	return ps
}

// Journal is the size of the journal that JournalSize asks for.
func (c *Worker) Journal() ByteSize {
	if c.JournalSize == 0 {
		return min(c.DiskSize/32, 256*MiB)
	}
	return c.JournalSize
}

// Validate reports everything that is wrong with c, nil when nothing is.
func (c Worker) Validate() error { return c.check().err() }

// Flags declares c's settings on fs; the loader then fills c.
func (c *Worker) Flags(fs *pflag.FlagSet) *Loader {
	s := DefaultScheduler()
	return newLoader("worker", "scheduler", c.settings(), s.settings(), c.check, fs)
}
