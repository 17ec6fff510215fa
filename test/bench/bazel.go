package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"
)

// The size of the generated build.
const cppFiles = 200

// bazelRounds is how often everything is built, in turns: a machine that others
// share is slower at one time than at another. The best of each counts.
const bazelRounds = 3

// cachedBuilds is how often a round builds from the cache: these are so short
// that how warm Bazel's own JVM is makes half of them.
const cachedBuilds = 3

// measureBazel builds generated C++ files: locally, on each server, and on each
// server again from its cache, always after "bazel clean".
func measureBazel(ctx context.Context, w *tabwriter.Writer, all []*server) error {
	if _, err := exec.LookPath("bazel"); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("/var/tmp", "remex-bench-bazel")
	if err != nil {
		return err
	}
	b := &bazelRun{dir: filepath.Join(dir, "workspace"), root: filepath.Join(dir, "root")}
	defer b.remove(dir)
	if err := b.generate(cppFiles); err != nil {
		return err
	}
	if _, err := b.build(ctx, "--nobuild"); err != nil { // loads and analyses; starts the server
		return err
	}
	var local best
	clean, cpu := make([]best, len(all)), make([]best, len(all))
	cached, cachedCPU := make([]best, len(all)), make([]best, len(all))
	failed := make([]error, len(all))
	for range bazelRounds {
		took, err := b.build(ctx, "--jobs=2", "--spawn_strategy=local")
		if err != nil {
			return err
		}
		local.of(took)
		for i, s := range all {
			if failed[i] != nil {
				continue
			}
			flags := []string{"--remote_executor=grpc://" + s.addr, "--jobs=16", "--remote_instance_name=" + string(salt())}
			for _, p := range s.platform.GetProperties() {
				flags = append(flags, "--remote_default_exec_properties="+p.Name+"="+p.Value)
			}
			before := cpuTime(s.pids)
			if took, failed[i] = b.build(ctx, flags...); failed[i] != nil {
				continue
			}
			clean[i].of(took)
			if len(s.pids) > 0 {
				cpu[i].of(cpuTime(s.pids) - before)
			}
			for range cachedBuilds {
				before := cpuTime(s.pids)
				if took, failed[i] = b.build(ctx, flags...); failed[i] != nil {
					continue
				}
				cached[i].of(took)
				if len(s.pids) > 0 {
					cachedCPU[i].of(cpuTime(s.pids) - before)
				}
			}
		}
	}
	title := fmt.Sprintf("bazel: %d C++ files", cppFiles)
	fmt.Fprintf(w, "%s\tlocally\t%s\t\t\tbest of %d, as below\n", title, local, bazelRounds)
	for i, s := range all {
		if failed[i] != nil {
			fmt.Fprintf(w, "%s\t%s\t-\t\t\t%v\n", title, s.name, failed[i])
			continue
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%.2f x local\t%s\tremote\n", title, s.name, clean[i], clean[i].Seconds()/local.Seconds(), cpu[i])
		fmt.Fprintf(w, "%s\t%s\t%s\t1/%.1f of local\t%s\tfrom cache\n", title, s.name, cached[i], local.Seconds()/cached[i].Seconds(), cachedCPU[i])
	}
	w.Flush()
	return nil
}

// best is the shortest of some durations; 0: of none.
type best struct{ time.Duration }

func (b *best) of(d time.Duration) {
	if b.Duration == 0 || d < b.Duration {
		b.Duration = d
	}
}

func (b best) String() string {
	if b.Duration == 0 {
		return ""
	}
	return fmt.Sprintf("%.2f s", b.Seconds())
}

type bazelRun struct{ dir, root string }

func (b *bazelRun) command(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "bazel", append([]string{"--output_user_root=" + b.root, "--max_idle_secs=600"}, args...)...)
	cmd.Dir = b.dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		tail := out[max(0, len(out)-2000):]
		return out, fmt.Errorf("bazel %s: %w\n%s", strings.Join(args, " "), err, tail)
	}
	return out, nil
}

// build cleans, builds everything and says how long the build took.
func (b *bazelRun) build(ctx context.Context, flags ...string) (time.Duration, error) {
	if _, err := b.command(ctx, "clean"); err != nil {
		return 0, err
	}
	start := time.Now()
	_, err := b.command(ctx, append([]string{"build", "--color=no", "--curses=no"}, append(flags, "//...")...)...)
	return time.Since(start), err
}

// generate writes a workspace of n C++ files in libraries of ten and a binary of
// them all, with the stubs that Bazel 4.2 needs where there is no network. Each
// file takes a compiler about a quarter of a second, so that what a server adds
// to it shows.
func (b *bazelRun) generate(n int) error {
	example := "examples/cpp"
	for _, name := range []string{"WORKSPACE", ".bazelrc"} {
		data, err := os.ReadFile(filepath.Join(example, name))
		if err != nil {
			return fmt.Errorf("run this from the repository's top: %w", err)
		}
		if err := b.write(name, string(data)); err != nil {
			return err
		}
	}
	if err := os.CopyFS(filepath.Join(b.dir, "third_party"), os.DirFS(filepath.Join(example, "third_party"))); err != nil {
		return err
	}
	if err := b.write(".bazelignore", "third_party\n"); err != nil {
		return err
	}
	var build, libraries, declared, calls strings.Builder
	for i := range n {
		name := fmt.Sprintf("f%d.cc", i)
		src := fmt.Sprintf("#include <string>\nint f%d(int n) { return static_cast<int>((std::to_string(n) + \"%d\").size()); }\n", i, i)
		if err := b.write(name, src); err != nil {
			return err
		}
		fmt.Fprintf(&declared, "int f%d(int);\n", i)
		fmt.Fprintf(&calls, " + f%d(n)", i)
	}
	for first := 0; first < n; first += 10 {
		var srcs []string
		for i := first; i < min(first+10, n); i++ {
			srcs = append(srcs, fmt.Sprintf("f%d.cc", i))
		}
		fmt.Fprintf(&build, "cc_library(name = \"l%d\", srcs = %s)\n", first, starlark(srcs))
		fmt.Fprintf(&libraries, "\":l%d\", ", first)
	}
	fmt.Fprintf(&build, "cc_binary(name = \"all\", srcs = [\"main.cc\"], deps = [%s])\n", libraries.String())
	if err := b.write("main.cc", fmt.Sprintf("%sint main(int n, char**) { return (0%s) == 0; }\n", declared.String(), calls.String())); err != nil {
		return err
	}
	return b.write("BUILD", build.String())
}

func starlark(list []string) string {
	return `["` + strings.Join(list, `", "`) + `"]`
}

func (b *bazelRun) write(name, text string) error {
	path := filepath.Join(b.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(text), 0o644)
}

func (b *bazelRun) remove(dir string) {
	_, _ = b.command(context.Background(), "shutdown")
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			_ = os.Chmod(path, 0o755) // Bazel makes outputs read-only
		}
		return nil
	})
	_ = os.RemoveAll(dir)
}
