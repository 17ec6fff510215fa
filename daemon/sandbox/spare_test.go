package sandbox

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const noDump = 0x40 // FS_NODUMP_FL

// What an action did to its directories must not reach the next action that
// gets them.
func TestSparesAreAsNew(t *testing.T) {
	for _, c := range []struct {
		name string
		use  func(path string) error
		kept bool
	}{
		{"untouched", func(string) error { return nil }, true},
		{"had files", func(path string) error {
			if err := os.WriteFile(path+"/f", nil, 0o600); err != nil {
				return err
			}
			return os.Remove(path + "/f")
		}, true},
		{"closed", func(path string) error { return os.Chmod(path, 0) }, true},
		{"sticky and open", func(path string) error { return unix.Chmod(path, 0o3777) }, true},
		{"of long ago", func(path string) error { return unix.Utimes(path, make([]unix.Timeval, 2)) }, true},
		{"attribute", func(path string) error { return unix.Setxattr(path, "user.note", []byte("secret"), 0) }, false},
		{"inode flags", func(path string) error {
			fd, err := unix.Open(path, unix.O_RDONLY, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			flags, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
			if err != nil {
				return err
			}
			return unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, flags|noDump)
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			var s spares
			if err := s.open(dir + "/spare"); err != nil {
				t.Fatal(err)
			}
			defer s.close()
			path := dir + "/d"
			if err := os.Mkdir(path, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := c.use(path); err != nil {
				t.Skipf("this file system or user cannot: %v", err)
			}
			fd, err := openDir(unix.AT_FDCWD, path)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			if kept := s.keep(fd, unix.AT_FDCWD, path); kept != c.kept {
				t.Fatalf("kept: %v, want %v", kept, c.kept)
			}
			if !c.kept {
				return
			}
			got, ok := s.take(os.Geteuid())
			if !ok {
				t.Fatal("there is none to take")
			}
			st, err := os.Stat(got)
			if err != nil {
				t.Fatal(err)
			}
			if st.Mode() != os.ModeDir|0o755 {
				t.Errorf("mode %v", st.Mode())
			}
		})
	}
}

// ext4 never gives back the blocks of a directory that was large.
func TestSparesAreSmall(t *testing.T) {
	dir := t.TempDir()
	var s spares
	if err := s.open(dir + "/spare"); err != nil {
		t.Fatal(err)
	}
	defer s.close()
	path := dir + "/d"
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range 2000 {
		if err := os.WriteFile(fmt.Sprintf("%s/a file with a name that takes room %d", path, i), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	names, _ := filepath.Glob(path + "/*")
	for _, n := range names {
		if err := os.Remove(n); err != nil {
			t.Fatal(err)
		}
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatal(err)
	}
	if kept, grown := s.keep(fd, unix.AT_FDCWD, path), st.Size != s.fresh.size; kept == grown {
		t.Fatalf("kept: %v; size %d, that of a new one %d", kept, st.Size, s.fresh.size)
	}
}

func TestSparesAreBounded(t *testing.T) {
	dir := t.TempDir()
	var s spares
	if err := s.open(dir + "/spare"); err != nil {
		t.Fatal(err)
	}
	for i := range maxSpares + 1 {
		path := fmt.Sprintf("%s/%d", dir, i)
		if err := os.Mkdir(path, 0o755); err != nil {
			t.Fatal(err)
		}
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if kept := s.keep(fd, unix.AT_FDCWD, path); kept != (i < maxSpares) {
			t.Fatalf("directory %d kept: %v", i, kept)
		}
		unix.Close(fd)
	}
	s.close()
	if _, err := os.Stat(dir + "/spare"); !os.IsNotExist(err) {
		t.Fatalf("spares stay behind: %v", err)
	}
}

func TestActionsGetTheDirectoriesOfOthers(t *testing.T) {
	eachMode(t, func(t *testing.T, base int) {
		r := newRig(t, base, nil)
		script := `mkdir -p a/b; touch a/f; chmod 700 .; stat -c %i . a`
		first, rem := r.must(script, nil)
		rem.Close()
		r.sb.trash.awaitSpares(t, r.sb.Executor(0).uid, 3)
		tree := &Tree{Dirs: []Subtree{{"in", &Tree{}}, {"out", &Tree{}}}}
		second, _ := r.must(`stat -c %i . in out; stat -c %a-%u . in out`, tree)
		var shared int
		for ino := range strings.FieldsSeq(first) {
			if slices.Contains(strings.Fields(second)[:3], ino) {
				shared++
			}
		}
		if shared != 2 {
			t.Errorf("directories of %q are not used again in %q", first, second)
		}
		want := fmt.Sprintf("755-%d", r.sb.Executor(0).uid)
		if got := strings.Fields(second)[3:]; !slices.Equal(got, []string{want, want, want}) {
			t.Errorf("directories are %v, want %s", got, want)
		}
	})
}

func (r *remover) awaitSpares(t *testing.T, owner, n int) {
	for range 5000 {
		r.spares.mu.Lock()
		have := len(r.spares.of[uint32(owner)])
		r.spares.mu.Unlock()
		if have == n {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatalf("no %d spares turned up", n)
}
