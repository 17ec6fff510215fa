package sandbox

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

func nlinkAndOwner(s os.FileInfo) (int, int) {
	st := s.Sys().(*syscall.Stat_t)
	return int(st.Nlink), int(st.Uid)
}

// BenchmarkFork compares a runner with os/exec, which is what the machine can do.
func BenchmarkFork(b *testing.B) {
	b.Run("os/exec", func(b *testing.B) {
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
	for b.Loop() {
		e := r.sb.Executor(0)
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
