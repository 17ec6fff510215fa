package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// bazel is a workspace of its own with a Bazel server of its own.
type bazel struct {
	t     *testing.T
	dir   string   // the workspace
	root  string   // --output_user_root
	flags []string // of every build
}

// newBazel copies a workspace and makes it ready to be built at the endpoint,
// or locally where that is empty.
func newBazel(t *testing.T, source, endpoint string) *bazel {
	t.Helper()
	if _, err := exec.LookPath("bazel"); err != nil {
		t.Fatal("there is no bazel on PATH; `make test` installs one")
	}
	dir := t.TempDir()
	b := &bazel{t: t, dir: filepath.Join(dir, "workspace"), root: filepath.Join(dir, "root")}
	copyWorkspace(t, source, b.dir)
	b.flags = []string{"--color=no", "--curses=no", "--show_progress_rate_limit=60", "--jobs=16"}
	if endpoint != "" {
		b.flags = append(b.flags, "--remote_executor="+endpoint)
	}
	t.Cleanup(func() {
		cmd := exec.Command("bazel", "--output_user_root="+b.root, "shutdown")
		cmd.Dir = b.dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("bazel shutdown: %v\n%s", err, out)
		}
		// Bazel makes its outputs read-only, which t.TempDir cannot remove.
		_ = filepath.WalkDir(b.root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				_ = os.Chmod(path, 0o755)
			}
			return nil
		})
	})
	return b
}

// copyWorkspace leaves out the links into output trees that Bazel makes.
func copyWorkspace(t *testing.T, from, to string) {
	t.Helper()
	entries, err := os.ReadDir(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(to, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		src, dst := filepath.Join(from, e.Name()), filepath.Join(to, e.Name())
		switch {
		case strings.HasPrefix(e.Name(), "bazel-"):
		case e.IsDir():
			err = os.CopyFS(dst, os.DirFS(src))
		default:
			var data []byte
			if data, err = os.ReadFile(src); err == nil {
				err = os.WriteFile(dst, data, 0o644)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// command prepares a Bazel command: a verb, then flags and targets.
func (b *bazel) command(ctx context.Context, args ...string) *exec.Cmd {
	all := []string{"--output_user_root=" + b.root, "--max_idle_secs=600", args[0]}
	all = append(append(all, b.flags...), args[1:]...)
	cmd := exec.CommandContext(ctx, "bazel", all...)
	cmd.Dir = b.dir
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
	cmd.WaitDelay = 20 * time.Second
	return cmd
}

// run ends the test unless Bazel exits with the code want, and returns what it
// printed.
func (b *bazel) run(want int, args ...string) string {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 5*time.Minute)
	defer cancel()
	out, err := b.command(ctx, args...).CombinedOutput()
	if code := exitCode(err); code != want {
		b.t.Fatalf("bazel %s: exit code %d, want %d (%v)\n%s", strings.Join(args, " "), code, want, err, out)
	}
	return string(out)
}

// clean forgets everything that was built.
func (b *bazel) clean() {
	b.t.Helper()
	cmd := exec.CommandContext(b.t.Context(), "bazel", "--output_user_root="+b.root, "--max_idle_secs=600", "clean")
	cmd.Dir = b.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		b.t.Fatalf("bazel clean: %v\n%s", err, out)
	}
}

// write replaces a file of the workspace.
func (b *bazel) write(name, text string) {
	b.t.Helper()
	path := filepath.Join(b.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		b.t.Fatal(err)
	}
}

// output is a file under bazel-bin or bazel-testlogs.
func (b *bazel) output(name string) []byte {
	b.t.Helper()
	data, err := os.ReadFile(filepath.Join(b.dir, name))
	if err != nil {
		b.t.Fatal(err)
	}
	return data
}

func exitCode(err error) int {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	}
	return -1
}

// processes reads Bazel's summary, "INFO: 29 processes: 2 internal, 27 remote.",
// into how many actions ran how.
func processes(t *testing.T, out string) map[string]int {
	t.Helper()
	line := regexp.MustCompile(`INFO: \d+ process(?:es)?: (.*)\.\n`).FindStringSubmatch(out)
	if line == nil {
		t.Fatalf("no summary of processes in\n%s", out)
	}
	how := map[string]int{}
	for part := range strings.SplitSeq(line[1], ", ") {
		n, kind, _ := strings.Cut(part, " ")
		count, err := strconv.Atoi(n)
		if err != nil {
			t.Fatalf("summary %q: %v", line[1], err)
		}
		how[kind] = count
	}
	return how
}

// hashes are those of the files under dir, links followed.
func hashes(t *testing.T, dir string) map[string]string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		t.Fatal(err)
	}
	sums := map[string]string{}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.Contains(path, ".runfiles") {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return nil //nolint:nilerr // a link to a directory or to nowhere
		}
		rel, _ := filepath.Rel(dir, path)
		sums[rel] = fmt.Sprintf("%x", sha256.Sum256(data))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return sums
}

// sleepy writes a workspace of n actions that take about secs seconds each.
func sleepy(t *testing.T, n int, secs string) string {
	t.Helper()
	dir := t.TempDir()
	var build bytes.Buffer
	for i := range n {
		fmt.Fprintf(&build, "genrule(name = \"g%d\", outs = [\"g%d.txt\"], cmd = \"sleep %s; echo %d > $@\")\n", i, i, secs, i)
	}
	for name, text := range map[string]string{
		"WORKSPACE": "",
		"BUILD":     build.String(),
		".bazelrc":  "startup --host_jvm_args=-Xmx512m\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
