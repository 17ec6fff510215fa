// Package action runs the actions of a worker: it takes REAPI's messages apart,
// brings the inputs, runs the command through package sandbox, stores what it
// left, and writes the response and the action-cache entry.
//
// It promises that a response is returned only after all that it names has been
// stored, that only clean results are cached, and that an error it returns,
// rather than a status in the response, is never the action's fault.
package action

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/remex-build/terraform-provider-remex/daemon/actioncache"
	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	"github.com/remex-build/terraform-provider-remex/daemon/sandbox"
)

// Store is the cluster's blobs, as seen from a worker.
type Store interface {
	blob.Getter
	blob.Putter
	blob.Finder
	// Fetch brings blobs to this node's disk. A *replica.MissingError lists
	// all that are not to be had.
	Fetch(ctx context.Context, ds []digest.Digest) error
	// PutFile stores the file at path, which it may move away.
	PutFile(ctx context.Context, d digest.Digest, path string) error
}

// Disk is this node's own blobs.
type Disk interface {
	// Link makes dst a hard link to a read-only file of the daemon's.
	Link(ctx context.Context, d digest.Digest, executable bool, dst string) error
	// Suspect says that files which Link handed out may have been changed.
	Suspect(d digest.Digest)
}

// Cache takes results of actions.
type Cache interface {
	Put(ctx context.Context, key actioncache.Key, result []byte) error
}

// Options of Actions.
type Options struct {
	Store       Store
	Disk        Disk
	ActionCache Cache
	// Dir, Executors, UIDBase and Limits are sandbox.Options'.
	Dir       string
	Executors int
	UIDBase   int
	Limits    sandbox.Limits
	// Worker is the node's name in results and messages.
	Worker     string
	Log        *slog.Logger
	Registerer prometheus.Registerer
}

// Actions runs a worker's actions. It is safe for concurrent use.
type Actions struct {
	o       Options
	log     *slog.Logger
	metrics *metrics
	sandbox *sandbox.Sandbox
	dirs    *directories
	ahead   prefetches
	// storing holds a place for each action whose outputs are being stored
	// while its executor runs the next: an executor is not given free before
	// there is a place, which bounds the finished roots on the disk.
	storing chan struct{}
}

// New starts the sandbox.
func New(o Options) (*Actions, error) {
	sb, err := sandbox.New(sandbox.Options{
		Dir: o.Dir, Executors: o.Executors, UIDBase: o.UIDBase, Limits: o.Limits,
		Node: o.Worker, Log: o.Log, Registerer: o.Registerer,
	})
	if err != nil {
		return nil, err
	}
	a := &Actions{
		o: o, log: o.Log.With("part", "action"), metrics: newMetrics(o.Registerer), sandbox: sb,
		dirs:    newDirectories(directoryBudget),
		storing: make(chan struct{}, 2*o.Executors),
	}
	a.ahead.limit = 2*o.Executors + 2
	return a, nil
}

// Close waits for what runs, whose contexts should have ended, and deletes
// what actions left.
func (a *Actions) Close() error {
	return a.sandbox.Close()
}

// source is where exec roots get their files: links from the disk, bytes from
// wherever they are.
type source struct {
	Disk
	Store
}

func (s source) Get(ctx context.Context, d digest.Digest, off int64) (io.ReadCloser, error) {
	return s.Store.Get(ctx, d, off)
}

// run is one action on its way.
type run struct {
	a    *Actions
	t    *Task
	p    *prepared
	exit sandbox.Exit
	// What happened when, in the order of ExecutedActionMetadata; all read
	// from one monotonic clock.
	fetched, completed time.Time
}

// Run implements worker.Actions.
func (a *Actions) Run(ctx context.Context, executor int, t *Task, started, free func()) ([]byte, error) {
	free = sync.OnceFunc(free)
	defer free()
	p, err := a.prepared(ctx, t)
	if err != nil {
		return a.refuse(err)
	}
	r := &run{a: a, t: t, p: p}
	remains, err := r.execute(ctx, executor, started)
	if err != nil {
		return a.refuse(err)
	}
	defer func() { <-a.storing }()
	defer remains.Close()
	free()
	response, err := r.conclude(ctx, remains)
	if err != nil {
		return a.refuse(err)
	}
	return response, nil
}

// execute lays the inputs out and runs the command. When it returns the
// executor can have the next action, and a place in storing is taken unless
// there is an error.
func (r *run) execute(ctx context.Context, executor int, started func()) (_ *sandbox.Remains, err error) {
	if executor < 0 || executor >= r.a.o.Executors {
		return nil, fmt.Errorf("there is no executor %d", executor)
	}
	ex := r.a.sandbox.Executor(executor)
	if err := ex.Acquire(ctx); err != nil {
		return nil, err
	}
	defer ex.Release()
	if err := r.a.layOut(ctx, ex, r.p); err != nil {
		return nil, err
	}
	r.fetched = time.Now()
	started()
	if r.exit, err = ex.Run(ctx, r.p.command.exec); err != nil {
		return nil, err
	}
	select {
	case r.a.storing <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	remains, err := ex.Finish()
	if err != nil {
		<-r.a.storing
		return nil, fmt.Errorf("take what the action left: %w", err)
	}
	return remains, nil
}

// layOut builds the exec root. A blob that was evicted between its fetch and
// its use is fetched again.
func (a *Actions) layOut(ctx context.Context, ex *sandbox.Executor, p *prepared) error {
	src := source{a.o.Disk, a.o.Store}
	for try := 0; ; try++ {
		err := ex.BuildRoot(ctx, p.plan, src, p.command.need)
		if err == nil || try == 2 || !errors.Is(err, blob.ErrNotFound) {
			return err
		}
		if err := a.fetch(ctx, p.plan.Digests()); err != nil {
			return err
		}
	}
}
