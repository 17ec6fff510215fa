package action

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/remex-build/terraform-provider-remex/daemon/actioncache"
	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/blob/replica"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	"github.com/remex-build/terraform-provider-remex/daemon/sandbox"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "runner" {
		sandbox.RunnerMain()
	}
	goleak.VerifyTestMain(m)
}

// store is a cluster of one map, with a disk that holds what was fetched.
type store struct {
	dir  string
	gate chan struct{} // if not nil, what PutFile waits for

	mu      sync.Mutex // guards everything below
	blobs   map[digest.Digest][]byte
	local   map[digest.Digest]bool
	cached  map[actioncache.Key][]byte
	suspect []digest.Digest
	broken  error
}

func (s *store) GetBatch(_ context.Context, ds []digest.Digest) []blob.Result {
	s.mu.Lock()
	defer s.mu.Unlock()
	rs := make([]blob.Result, len(ds))
	for i, d := range ds {
		if data, ok := s.blobs[d]; ok {
			rs[i].Data = slices.Clone(data)
		} else {
			rs[i].Err = fmt.Errorf("%s: %w", d, blob.ErrNotFound)
		}
	}
	return rs
}

func (s *store) Get(ctx context.Context, d digest.Digest, off int64) (io.ReadCloser, error) {
	r := s.GetBatch(ctx, []digest.Digest{d})[0]
	if r.Err != nil {
		return nil, r.Err
	}
	return io.NopCloser(bytes.NewReader(r.Data[off:])), nil
}

func (s *store) Put(ctx context.Context, d digest.Digest, r io.Reader) error {
	data, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	return s.PutBatch(ctx, []blob.Blob{{Digest: d, Data: data}})[0]
}

func (s *store) PutBatch(_ context.Context, bs []blob.Blob) []error {
	s.mu.Lock()
	defer s.mu.Unlock()
	errs := make([]error, len(bs))
	for i, b := range bs {
		if errs[i] = s.broken; errs[i] != nil {
			continue
		}
		if digest.Of(b.Digest.Function(), b.Data) != b.Digest {
			errs[i] = blob.ErrMismatch
			continue
		}
		s.blobs[b.Digest] = slices.Clone(b.Data)
	}
	return errs
}

// PutFile moves the file away, as a store may.
func (s *store) PutFile(ctx context.Context, d digest.Digest, path string) error {
	if s.gate != nil {
		<-s.gate
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil {
		return err
	}
	return s.PutBatch(ctx, []blob.Blob{{Digest: d, Data: data}})[0]
}

func (s *store) Missing(_ context.Context, ds []digest.Digest) ([]digest.Digest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var missing []digest.Digest
	for _, d := range ds {
		if _, ok := s.blobs[d]; !ok && !d.IsEmpty() {
			missing = append(missing, d)
		}
	}
	return missing, nil
}

func (s *store) Fetch(ctx context.Context, ds []digest.Digest) error {
	if missing, _ := s.Missing(ctx, ds); len(missing) > 0 {
		return &replica.MissingError{Digests: missing}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range ds {
		for prefix, mode := range map[string]os.FileMode{"p": 0o444, "x": 0o555} {
			err := os.WriteFile(filepath.Join(s.dir, prefix+d.Hash()), s.blobs[d], mode)
			if err != nil && !errors.Is(err, os.ErrPermission) {
				return err
			}
		}
		s.local[d] = true
	}
	return nil
}

func (s *store) Link(_ context.Context, d digest.Digest, executable bool, dst string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.local[d] {
		return blob.ErrNotFound
	}
	prefix := "p"
	if executable {
		prefix = "x"
	}
	return os.Link(filepath.Join(s.dir, prefix+d.Hash()), dst)
}

func (s *store) Suspect(d digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.suspect = append(s.suspect, d)
	delete(s.local, d)
	for _, prefix := range []string{"p", "x"} {
		_ = os.Remove(filepath.Join(s.dir, prefix+d.Hash()))
	}
}

// cache is the store's action cache.
type cache struct{ s *store }

func (c cache) Put(_ context.Context, key actioncache.Key, result []byte) error {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.s.cached[key] = result
	return nil
}

type rig struct {
	t     testing.TB
	store *store
	a     *Actions
	seq   int
}

func newRig(t testing.TB, change func(*Options)) *rig {
	t.Helper()
	dir := t.TempDir()
	s := &store{dir: filepath.Join(dir, "disk"), blobs: map[digest.Digest][]byte{}, local: map[digest.Digest]bool{}, cached: map[actioncache.Key][]byte{}}
	if err := os.Mkdir(s.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	o := Options{
		Store: s, Disk: s, ActionCache: cache{s}, Worker: "w1", Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Dir: filepath.Join(dir, "work"), Executors: 2, Limits: sandbox.Limits{Grace: time.Second},
	}
	if change != nil {
		change(&o)
	}
	a, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		left, _ := os.ReadDir(filepath.Join(dir, "work", "done"))
		for _, e := range left {
			t.Errorf("left behind: %s", e.Name())
		}
	})
	return &rig{t: t, store: s, a: a}
}

// blob stores data and names it.
func (r *rig) blob(data string) *repb.Digest {
	r.store.mu.Lock()
	defer r.store.mu.Unlock()
	d := digest.Of(digest.SHA256, []byte(data))
	r.store.blobs[d] = []byte(data)
	return toProto(d)
}

func (r *rig) message(m proto.Message) *repb.Digest {
	r.t.Helper()
	data, err := proto.Marshal(m)
	if err != nil {
		r.t.Fatal(err)
	}
	return r.blob(string(data))
}

// task makes a task of a command and a root; its blobs are in the store only.
func (r *rig) task(c *repb.Command, root *repb.Directory, change func(*repb.Action)) *Task {
	r.t.Helper()
	if root == nil {
		root = &repb.Directory{}
	}
	action := &repb.Action{CommandDigest: r.message(c), InputRootDigest: r.message(root)}
	if change != nil {
		change(action)
	}
	d, err := parseDigest(digest.SHA256, r.message(action))
	if err != nil {
		r.t.Fatal(err)
	}
	r.seq++
	return &Task{ID: fmt.Sprint(r.seq), Action: d, QueuedAt: time.Now()}
}

func script(s string) *repb.Command {
	return &repb.Command{
		Arguments:            []string{"/bin/sh", "-c", s},
		EnvironmentVariables: []*repb.Command_EnvironmentVariable{{Name: "PATH", Value: "/usr/bin:/bin"}},
	}
}

// run runs a task; trouble fails the test.
func (r *rig) run(t *Task) *repb.ExecuteResponse {
	r.t.Helper()
	started, freed := 0, 0
	data, err := r.a.Run(r.t.Context(), 0, t, func() { started++ }, func() { freed++ })
	if err != nil {
		r.t.Fatalf("trouble: %v", err)
	}
	if started > 1 || freed != 1 {
		r.t.Errorf("started %d times, freed %d times", started, freed)
	}
	var resp repb.ExecuteResponse
	if err := proto.Unmarshal(data, &resp); err != nil {
		r.t.Fatal(err)
	}
	if resp.GetStatus().GetCode() == 0 && resp.GetResult() == nil {
		r.t.Error("status OK without a result")
	}
	return &resp
}

// result runs a task that has to end well.
func (r *rig) result(t *Task) *repb.ActionResult {
	r.t.Helper()
	resp := r.run(t)
	if resp.GetStatus().GetCode() != 0 || resp.GetResult().GetExitCode() != 0 {
		r.t.Fatalf("status %v, exit %d, stderr %s", resp.GetStatus(), resp.GetResult().GetExitCode(), resp.GetResult().GetStderrRaw())
	}
	return resp.GetResult()
}

// content reads a blob that has to be in the store.
func (r *rig) content(d *repb.Digest) string {
	r.t.Helper()
	parsed, err := parseDigest(digest.SHA256, d)
	if err != nil {
		r.t.Fatal(err)
	}
	data, ok := r.store.blobs[parsed]
	if !ok && !parsed.IsEmpty() {
		r.t.Errorf("%s is not in the store", parsed)
	}
	return string(data)
}
