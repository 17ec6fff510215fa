package sandbox

import (
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "runner" {
		RunnerMain()
	}
	if dir := os.Getenv("REMEX_TEST_DAEMON"); dir != "" {
		beDaemon(dir)
	}
	goleak.VerifyTestMain(m)
}

// disk is a Source that keeps blobs as files.
type disk struct{ dir string }

func (s disk) add(t testing.TB, data string) digest.Digest {
	t.Helper()
	d := digest.Of(digest.SHA256, []byte(data))
	for name, mode := range map[string]os.FileMode{"p" + d.Hash(): 0o444, "x" + d.Hash(): 0o555} {
		if err := os.WriteFile(filepath.Join(s.dir, name), []byte(data), mode); err != nil && !os.IsPermission(err) {
			t.Fatal(err)
		}
	}
	return d
}

func (s disk) path(d digest.Digest, executable bool) string {
	if executable {
		return filepath.Join(s.dir, "x"+d.Hash())
	}
	return filepath.Join(s.dir, "p"+d.Hash())
}

func (s disk) Link(_ context.Context, d digest.Digest, executable bool, dst string) error {
	return os.Link(s.path(d, executable), dst)
}

func (s disk) Get(_ context.Context, d digest.Digest, _ int64) (io.ReadCloser, error) {
	f, err := os.Open(s.path(d, false))
	if err != nil {
		return nil, blob.ErrNotFound
	}
	return f, nil
}

// kept is a Sink that keeps everything.
type kept struct {
	small map[digest.Digest]string
	large map[string]digest.Digest
}

func newKept() *kept {
	return &kept{small: map[digest.Digest]string{}, large: map[string]digest.Digest{}}
}

func (k *kept) Small(_ context.Context, d digest.Digest, data []byte) error {
	k.small[d] = string(data)
	return nil
}

func (k *kept) Large(_ context.Context, d digest.Digest, path string) error {
	k.large[path] = d
	return nil
}

type rig struct {
	t    testing.TB
	dir  string
	disk disk
	sb   *Sandbox
}

// modes are the two ways in which actions' uids are chosen.
var modes = []struct {
	name string
	base int
}{{"own uid", 0}, {"shared uid", -1}}

func eachMode(t *testing.T, f func(t *testing.T, base int)) {
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			if m.base == 0 && os.Geteuid() != 0 {
				t.Skip("only root may set uids")
			}
			f(t, m.base)
		})
	}
}

func newRig(t testing.TB, base int, change func(*Options)) *rig {
	t.Helper()
	// Below a directory that other users may not pass, as home directories are.
	r := &rig{t: t, dir: t.TempDir()}
	r.disk = disk{filepath.Join(r.dir, "disk")}
	if err := os.Mkdir(r.disk.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	o := Options{
		Dir: filepath.Join(r.dir, "work"), Executors: 2, UIDBase: base, Node: "n1",
		Limits: Limits{Grace: 400 * time.Millisecond}, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
	if change != nil {
		change(&o)
	}
	var err error
	if r.sb, err = New(o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.sb.Close(); err != nil {
			t.Error(err)
		}
		left, _ := os.ReadDir(filepath.Join(o.Dir, "done"))
		for _, e := range left {
			t.Errorf("left behind: %s", e.Name())
		}
	})
	return r
}

// shell runs a script in a fresh root on executor 0.
func (r *rig) shell(script string, tree *Tree, timeout time.Duration) (Exit, *Remains, error) {
	return r.run(r.t.Context(), Command{Argv: []string{"/bin/sh", "-c", script}, Env: []string{"PATH=/usr/bin:/bin"}, Timeout: timeout}, tree)
}

func (r *rig) run(ctx context.Context, c Command, tree *Tree) (Exit, *Remains, error) {
	r.t.Helper()
	e := r.sb.Executor(0)
	if err := e.Acquire(ctx); err != nil {
		r.t.Fatal(err)
	}
	defer e.Release()
	if tree == nil {
		tree = &Tree{}
	}
	p, err := NewPlan(tree)
	if err != nil {
		return Exit{}, nil, err
	}
	var need []string
	if c.Dir != "" {
		need = []string{c.Dir}
	}
	if err := e.BuildRoot(ctx, p, r.disk, need); err != nil {
		return Exit{}, nil, err
	}
	exit, err := e.Run(ctx, c)
	if err != nil {
		return exit, nil, err
	}
	rem, err := e.Finish()
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(rem.Close)
	return exit, rem, nil
}

// must runs a script that has to end well and gives its stdout.
func (r *rig) must(script string, tree *Tree) (string, *Remains) {
	r.t.Helper()
	exit, rem, err := r.shell(script, tree, 0)
	if err != nil || exit.Code != 0 {
		var out string
		if rem != nil {
			out = string(rem.Stdout.Data) + string(rem.Stderr.Data)
		}
		r.t.Fatalf("%q: exit %d, err %v, output %s", script, exit.Code, err, out)
	}
	return string(rem.Stdout.Data), rem
}

// alive reports whether a process has not ended.
func alive(pid int) bool {
	for _, p := range processes() {
		if p.pid == pid {
			return !p.zombie
		}
	}
	return false
}
