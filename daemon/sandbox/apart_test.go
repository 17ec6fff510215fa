package sandbox

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Actions with uids of their own cannot reach the runner, one another, or the
// daemon's files.
func TestActionsAreKeptApart(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root may set uids")
	}
	r := newRig(t, 0, nil)
	pid := func() int { return r.sb.Executor(0).proc.cmd.Process.Pid }
	r.must("true", nil)
	before := pid()
	out, _ := r.must(`for t in /proc/$PPID/task/*; do kill -9 ${t##*/} 2>/dev/null && echo killed ${t##*/}; done; kill -9 $PPID 2>/dev/null && echo killed the runner; :`, nil)
	if out != "" || pid() != before {
		t.Errorf("an action killed its runner: %s", out)
	}

	other := r.sb.Executor(1)
	if err := other.Acquire(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer other.Release()
	p, err := NewPlan(&Tree{Dirs: []Subtree{{"d", &Tree{}}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := other.BuildRoot(t.Context(), p, r.disk, nil); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{other.Root(), other.dir, filepath.Join(r.sb.dir, "done"), r.sb.dir + "/lock", r.disk.dir, "/etc/shadow"} {
		exit, rem, err := r.shell("ls "+path+"/ || cat "+path+" || touch "+path+"/x || mkdir "+path+"/y", nil, 0)
		if err != nil || exit.Code == 0 {
			t.Errorf("%s is open to an action: %s, %v", path, rem.Stdout.Data, err)
		}
	}
	if out, _ := r.must("ls "+r.dir+"; ls "+filepath.Dir(r.dir)+" | head -3; pwd; touch "+r.sb.dir+"/x 2>&1 | wc -l", nil); !strings.HasSuffix(out, "/x0/root\n1\n") {
		t.Errorf("it saw %q", out)
	}
}

func TestRootsInAnOpenDirectory(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root may set uids")
	}
	dir, err := os.MkdirTemp("", "remex-sandbox-") //nolint:usetesting // t.TempDir's parent is closed
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	r := newRig(t, 0, func(o *Options) { o.Dir = filepath.Join(dir, "work") })
	r.disk.dir = filepath.Join(dir, "disk")
	if err := os.Mkdir(r.disk.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if r.sb.hide != "" {
		t.Errorf("%s is taken for closed", r.sb.hide)
	}
	tree := &Tree{Files: []File{{Name: "in", Digest: r.disk.add(t, "input")}}}
	if out, _ := r.must(`cat "$PWD/in"`, tree); out != "input" {
		t.Errorf("it read %q", out)
	}
}

func TestCommandsThatAreTooLong(t *testing.T) {
	r := newRig(t, 0, nil)
	for _, n := range []int{200 << 10, 20 << 20} { // more than an argument, more than a frame may have
		_, _, err := r.run(t.Context(), Command{Argv: []string{"/bin/echo", strings.Repeat("x", n)}}, nil)
		var ce *CommandError
		if !errors.As(err, &ce) || len(ce.Text) > 200 {
			t.Errorf("%d bytes: %.300v", n, err)
		}
	}
	if out, _ := r.must("echo next", nil); out != "next\n" {
		t.Errorf("the next action wrote %q", out)
	}
}
