package sandbox

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func nlinkAndOwner(s os.FileInfo) (int, int) {
	st := s.Sys().(*syscall.Stat_t)
	return int(st.Nlink), int(st.Uid)
}

// cpu is the processor time that this process, a runner and their children took.
func cpu(b *testing.B, runner int) time.Duration {
	b.Helper()
	var sum time.Duration
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var ru unix.Rusage
		if err := unix.Getrusage(who, &ru); err != nil {
			b.Fatal(err)
		}
		sum += time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
	}
	if runner == 0 {
		return sum
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", runner))
	if err != nil {
		b.Fatal(err)
	}
	f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	for _, s := range f[11:15] { // utime stime cutime cstime, in ticks
		n, err := strconv.Atoi(s)
		if err != nil {
			b.Fatal(err)
		}
		sum += time.Duration(n) * 10 * time.Millisecond
	}
	return sum
}

// countCPU reports the processor time per operation: on a busy machine it is
// steadier than the time by the clock.
func countCPU(b *testing.B, runner int) func() {
	before := cpu(b, runner)
	return func() { b.ReportMetric(float64(cpu(b, runner)-before)/float64(b.N), "cpu-ns/op") }
}

// BenchmarkFork compares a runner with os/exec, which is what the machine can do.
func BenchmarkFork(b *testing.B) {
	b.Run("os/exec", func(b *testing.B) {
		defer countCPU(b, 0)()
		for b.Loop() {
			if err := exec.CommandContext(b.Context(), "/bin/true").Run(); err != nil {
				b.Fatal(err)
			}
		}
	})
	for _, m := range modes {
		b.Run(m.name, func(b *testing.B) {
			r := newRig(b, m.base, nil)
			e := r.sb.Executor(0)
			if err := e.Acquire(b.Context()); err != nil {
				b.Fatal(err)
			}
			defer e.Release()
			p, _ := NewPlan(&Tree{})
			if err := e.BuildRoot(b.Context(), p, r.disk, nil); err != nil {
				b.Fatal(err)
			}
			if err := e.ready(b.Context()); err != nil {
				b.Fatal(err)
			}
			defer countCPU(b, e.proc.cmd.Process.Pid)()
			for b.Loop() {
				if _, err := e.Run(b.Context(), Command{Argv: []string{"/bin/true"}}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkAction is a whole action without inputs and outputs.
func BenchmarkAction(b *testing.B) {
	r := newRig(b, 0, nil)
	e := r.sb.Executor(0)
	if err := e.ready(b.Context()); err != nil {
		b.Fatal(err)
	}
	defer countCPU(b, e.proc.cmd.Process.Pid)()
	for b.Loop() {
		if err := e.Acquire(b.Context()); err != nil {
			b.Fatal(err)
		}
		p, _ := NewPlan(&Tree{})
		if err := e.BuildRoot(b.Context(), p, r.disk, []string{"out"}); err != nil {
			b.Fatal(err)
		}
		if _, err := e.Run(b.Context(), Command{Argv: []string{"/bin/true"}}); err != nil {
			b.Fatal(err)
		}
		rem, err := e.Finish()
		if err != nil {
			b.Fatal(err)
		}
		rem.Close()
		e.Release()
	}
}

// BenchmarkRoot lays out 10,000 inputs in 500 directories, beside plain link(2).
func BenchmarkRoot(b *testing.B) {
	const dirs, files = 500, 20
	r := newRig(b, 0, nil)
	var tree Tree
	for i := range dirs {
		t := &Tree{}
		for j := range files {
			t.Files = append(t.Files, File{Name: fmt.Sprintf("f%d", j), Digest: r.disk.add(b, fmt.Sprintf("%d/%d", i, j))})
		}
		tree.Dirs = append(tree.Dirs, Subtree{fmt.Sprintf("d%d", i), t})
	}
	b.Run("link(2)", func(b *testing.B) {
		dst := filepath.Join(r.dir, "plain")
		for b.Loop() {
			if err := os.Mkdir(dst, 0o755); err != nil {
				b.Fatal(err)
			}
			for i, s := range tree.Dirs {
				for j, f := range s.Tree.Files {
					if err := os.Link(r.disk.path(f.Digest, false), fmt.Sprintf("%s/%d-%d", dst, i, j)); err != nil {
						b.Fatal(err)
					}
				}
			}
			b.StopTimer()
			os.RemoveAll(dst)
			b.StartTimer()
		}
	})
	b.Run("root", func(b *testing.B) {
		e := r.sb.Executor(0)
		if err := e.Acquire(b.Context()); err != nil {
			b.Fatal(err)
		}
		defer e.Release()
		for b.Loop() {
			p, err := NewPlan(&tree)
			if err != nil {
				b.Fatal(err)
			}
			if err := e.BuildRoot(b.Context(), p, r.disk, nil); err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			rem, err := e.Finish()
			if err != nil {
				b.Fatal(err)
			}
			os.RemoveAll(rem.path)
			rem.Close()
			b.StartTimer()
		}
	})
}
