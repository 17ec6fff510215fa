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

// measureBazel builds generated C++ files: locally, on each server, and on each
// server again from its cache, always from an empty output base's state.
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
	local, err := b.build(ctx, "--jobs=2", "--spawn_strategy=local")
	if err != nil {
		return err
	}
	title := fmt.Sprintf("bazel: %d C++ files", cppFiles)
	fmt.Fprintf(w, "%s\tlocally\t%.2f s\t\t\t\n", title, local.Seconds())
	w.Flush()
	for _, s := range all {
		flags := []string{"--remote_executor=grpc://" + s.addr, "--jobs=16", "--remote_instance_name=" + string(salt())}
		for _, p := range s.platform.GetProperties() {
			flags = append(flags, "--remote_default_exec_properties="+p.Name+"="+p.Value)
		}
		before := cpuTime(s.pids)
		clean, err := b.build(ctx, flags...)
		if err != nil {
			fmt.Fprintf(w, "%s\t%s\t-\t\t\t%v\n", title, s.name, err)
			w.Flush()
			continue
		}
		cpu := ""
		if len(s.pids) > 0 {
			cpu = fmt.Sprintf("%.2f s", (cpuTime(s.pids) - before).Seconds())
		}
		fmt.Fprintf(w, "%s\t%s\t%.2f s\t%.2f x local\t%s\tremote\n", title, s.name, clean.Seconds(), clean.Seconds()/local.Seconds(), cpu)
		w.Flush()
		cached, err := b.build(ctx, flags...)
		if err != nil {
			fmt.Fprintf(w, "%s\t%s\t-\t\t\t%v\n", title, s.name, err)
			w.Flush()
			continue
		}
		fmt.Fprintf(w, "%s\t%s\t%.2f s\t1/%.1f of local\t\tfrom cache\n", title, s.name, cached.Seconds(), local.Seconds()/cached.Seconds())
		w.Flush()
	}
	return nil
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

// generate writes a workspace of n libraries of one C++ file each, with the
// stubs that Bazel 4.2 needs where there is no network.
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
	var build strings.Builder
	for i := range n {
		fmt.Fprintf(&build, "cc_library(name = \"l%d\", srcs = [\"l%d.cc\"])\n", i, i)
		src := fmt.Sprintf("#include <map>\n#include <string>\n#include <vector>\nstd::map<std::string, std::vector<int>> table%d;\nint f%d(int n) {\n  table%d[std::to_string(n)].push_back(%d);\n  return static_cast<int>(table%d.size());\n}\n", i, i, i, i, i)
		if err := b.write(fmt.Sprintf("l%d.cc", i), src); err != nil {
			return err
		}
	}
	return b.write("BUILD", build.String())
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
