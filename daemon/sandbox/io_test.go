package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

func TestInputsAreLaidOut(t *testing.T) {
	eachMode(t, func(t *testing.T, base int) {
		r := newRig(t, base, nil)
		mtime := time.Date(2001, 2, 3, 4, 5, 6, 789, time.UTC)
		shared := &Tree{Files: []File{{Name: "f", Digest: r.disk.add(t, "shared")}}}
		tree := &Tree{
			Files: []File{
				{Name: "plain", Digest: r.disk.add(t, "plain")},
				{Name: "tool", Digest: r.disk.add(t, "tool"), Executable: true},
				{Name: "empty", Digest: digest.Empty(digest.SHA256)},
				{Name: "emptytool", Digest: digest.Empty(digest.SHA256), Executable: true},
				{Name: "props", Digest: r.disk.add(t, "props"), Properties: Properties{Mtime: mtime, Mode: 0o640, HasMode: true}},
			},
			Symlinks: []Symlink{{Name: "link", Target: "a/f"}, {Name: "abs", Target: "/nonexistent"}},
			Dirs:     []Subtree{{"a", shared}, {"b", &Tree{Dirs: []Subtree{{"c", shared}}}}, {"none", &Tree{}}},
		}
		out, _ := r.must(`cat plain a/f b/c/f link; echo; for f in plain tool empty emptytool props; do stat -c '%n %a %s' $f; done
readlink link abs; stat -c %y props; stat -c %a . a none; ls; touch a/new none/new new && mv a a2 && rm plain`, tree)
		want := `plainsharedsharedshared
plain 444 5
tool 555 4
empty 444 0
emptytool 555 0
props 640 5
a/f
/nonexistent
2001-02-03 04:05:06.000000789 +0000
755
755
755
a
abs
b
empty
emptytool
link
none
plain
props
tool
`
		if diff := cmp.Diff(want, out); diff != "" {
			t.Error(diff)
		}
	})
}

func TestInputsCannotBeChanged(t *testing.T) {
	tree := func(r *rig) (*Tree, digest.Digest) {
		d := r.disk.add(t, "input")
		return &Tree{Files: []File{{Name: "in", Digest: d}, {Name: "tool", Digest: d, Executable: true}}}, d
	}
	attempts := []string{
		"echo bad > in", "echo bad >> tool", "chmod 777 in && echo bad > in", "truncate -s 0 in",
		"touch -d 2001-01-01 in", "chmod 600 tool && echo worse > tool && rm tool", "chmod u+w in; echo INPUT > in; mv in elsewhere; true",
	}
	if os.Geteuid() == 0 {
		t.Run("own uid: it is not permitted", func(t *testing.T) {
			r := newRig(t, 0, nil)
			in, d := tree(r)
			before, err := sealOf(r.disk.path(d, false))
			if err != nil {
				t.Fatal(err)
			}
			for _, script := range attempts {
				if _, _, err := r.shell(script, in, 0); err != nil {
					t.Fatal(err)
				}
				b, _ := os.ReadFile(r.disk.path(d, false))
				x, _ := os.ReadFile(r.disk.path(d, true))
				if now, _ := sealOf(r.disk.path(d, false)); now != before || string(b) != "input" || string(x) != "input" {
					t.Fatalf("%q changed the store", script)
				}
			}
		})
	}
	t.Run("shared uid: it is noticed", func(t *testing.T) {
		r := newRig(t, -1, nil)
		for _, script := range append(attempts, "true", "rm in tool; echo mine > in") {
			in, d := tree(r)
			_, rem, err := r.shell(script, in, 0)
			if err != nil {
				t.Fatal(err)
			}
			changed, err := rem.Changed(t.Context(), r.disk)
			if err != nil {
				t.Fatal(err)
			}
			harmless := script == "true" || strings.HasPrefix(script, "rm")
			if harmless != (len(changed) == 0) {
				t.Errorf("%q: changed %v", script, changed)
			}
			_ = os.Remove(r.disk.path(d, false))
			_ = os.Remove(r.disk.path(d, true))
		}
	})
}

func TestNeededDirectoriesStayInTheRoot(t *testing.T) {
	eachMode(t, func(t *testing.T, base int) {
		r := newRig(t, base, nil)
		tree := &Tree{
			Files:    []File{{Name: "file", Digest: r.disk.add(t, "x")}},
			Symlinks: []Symlink{{Name: "out", Target: r.dir}, {Name: "up", Target: "../.."}, {Name: "in", Target: "d"}, {Name: "loop", Target: "loop"}},
			Dirs:     []Subtree{{"d", &Tree{}}},
		}
		p, err := NewPlan(tree)
		if err != nil {
			t.Fatal(err)
		}
		e := r.sb.Executor(0)
		if err := e.Acquire(t.Context()); err != nil {
			t.Fatal(err)
		}
		defer e.Release()
		for _, c := range []struct {
			dir string
			ok  bool
		}{{"new/a/b", true}, {"d/x", true}, {"in/y/z", true}, {"out/x", false}, {"up/x", false}, {"file/x", false}, {"file", false}, {"loop/x", false}} {
			err := e.BuildRoot(t.Context(), p, r.disk, []string{c.dir})
			var ie *InputError
			switch {
			case c.ok && err != nil:
				t.Errorf("%s: %v", c.dir, err)
			case !c.ok && !errors.As(err, &ie):
				t.Errorf("%s: %v, want an InputError", c.dir, err)
			}
		}
		if _, err := os.Lstat(filepath.Join(r.dir, "x")); err == nil {
			t.Error("a directory was made outside the root")
		}
	})
}

func TestTreesAreBounded(t *testing.T) {
	wide := &Tree{Files: []File{{Name: "f", Digest: digest.Empty(digest.SHA256)}}}
	for range 40 { // 2^40 directories
		wide = &Tree{Dirs: []Subtree{{"l", wide}, {"r", wide}}}
	}
	deep := &Tree{}
	for range 2000 {
		deep = &Tree{Dirs: []Subtree{{"d", deep}}}
	}
	for name, tree := range map[string]*Tree{"wide": wide, "deep": deep} {
		var ie *InputError
		if _, err := NewPlan(tree); !errors.As(err, &ie) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOutputs(t *testing.T) {
	eachMode(t, func(t *testing.T, base int) {
		r := newRig(t, base, nil)
		secret := filepath.Join(r.dir, "secret")
		if err := os.WriteFile(secret, []byte("secret"), 0o644); err != nil {
			t.Fatal(err)
		}
		tree := &Tree{Files: []File{{Name: "in", Digest: r.disk.add(t, "input")}, {Name: "bigin", Digest: r.disk.add(t, strings.Repeat("i", SmallSize+1))}}}
		_, rem := r.must(`echo small > small; : > empty; echo '#!' > tool; chmod 711 tool
head -c 100000 /dev/zero > big; ln big big2; head -c 100001 /dev/zero > bigx; chmod 755 bigx
mkdir -p dir/sub/deep none closed; echo 1 > dir/b; echo 2 > dir/a; ln -s ../x dir/sub/l; echo 3 > closed/f; chmod 000 closed/f closed
ln -s small link; ln -s dir dirlink; ln -s /etc/passwd abs; ln -s nowhere dangling; ln -s loop loop
ln -s `+r.dir+` escape; ln -s ../.. up; ln -s dir/sub through; mkfifo fifo; mkdir fifodir; mkfifo fifodir/p
touch "$(printf 'bad\377')"; head -c 100 /dev/zero > sparse; truncate -s 64G sparse`, tree)
		small := func(data string) digest.Digest { return digest.Of(digest.SHA256, []byte(data)) }
		k := newKept()
		g := rem.Gather(digest.SHA256, k)
		for path, want := range map[string]Output{
			"small":    {Kind: RegularFile, Digest: small("small\n")},
			"empty":    {Kind: RegularFile, Digest: digest.Empty(digest.SHA256)},
			"tool":     {Kind: RegularFile, Digest: small("#!\n"), Executable: true},
			"big":      {Kind: RegularFile, Digest: small(strings.Repeat("\x00", 100000))},
			"bigx":     {Kind: RegularFile, Digest: small(strings.Repeat("\x00", 100001)), Executable: true},
			"in":       {Kind: RegularFile, Digest: small("input")},
			"bigin":    {Kind: RegularFile, Digest: small(strings.Repeat("i", SmallSize+1))},
			"none":     {Kind: Directory, Entries: []Output{}},
			"closed":   {Kind: Directory, Entries: []Output{{Name: "f", Kind: RegularFile, Digest: small("3\n")}}},
			"link":     {Kind: SymbolicLink, Target: "small", TargetKind: RegularFile},
			"dirlink":  {Kind: SymbolicLink, Target: "dir", TargetKind: Directory},
			"abs":      {Kind: SymbolicLink, Target: "/etc/passwd"},
			"dangling": {Kind: SymbolicLink, Target: "nowhere"},
			"loop":     {Kind: SymbolicLink, Target: "loop"},
			"missing":  {}, "missing/x": {}, "small/x": {},
			"through/l":  {Kind: SymbolicLink, Target: "../x"},
			"dirlink/a":  {Kind: RegularFile, Digest: small("2\n")},
			"dir/sub/..": {Kind: Directory}, // compared by kind only
			"dir": {Kind: Directory, Entries: []Output{
				{Name: "a", Kind: RegularFile, Digest: small("2\n")},
				{Name: "b", Kind: RegularFile, Digest: small("1\n")},
				{Name: "sub", Kind: Directory, Entries: []Output{
					{Name: "deep", Kind: Directory, Entries: []Output{}},
					{Name: "l", Kind: SymbolicLink, Target: "../x"},
				}},
			}},
		} {
			got, err := g.Path(t.Context(), path)
			if err != nil {
				t.Errorf("%s: %v", path, err)
				continue
			}
			if strings.HasSuffix(path, "..") {
				got.Entries = nil
			}
			if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b digest.Digest) bool { return a == b }), cmp.FilterPath(func(p cmp.Path) bool {
				return p.Last().String() == ".Mtime" || p.Last().String() == ".Mode"
			}, cmp.Ignore())); diff != "" {
				t.Errorf("%s: %s", path, diff)
			}
		}
		for path, want := range map[string]string{
			"escape/secret": "leads out", "up/secret": "leads out", "fifo": "FIFO", "fifodir": `"fifodir/p" is a FIFO`, "": "UTF-8", "loop/x": "leads out",
		} {
			var oe *OutputError
			if _, err := g.Path(t.Context(), path); !errors.As(err, &oe) || !strings.Contains(oe.Text, want) {
				t.Errorf("%q: %v, want an OutputError with %q", path, err, want)
			}
		}
		var be *BudgetError
		if _, err := g.Path(t.Context(), "sparse"); !errors.As(err, &be) {
			t.Errorf("sparse: %v", err)
		}
		checkLarge(t, r, k)
	})
}

// checkLarge looks whether files handed over are right, and safe to move away.
func checkLarge(t *testing.T, r *rig, k *kept) {
	t.Helper()
	if len(k.large) < 3 {
		t.Errorf("large outputs: %v", k.large)
	}
	for path, d := range k.large {
		b, err := os.ReadFile(path)
		if err != nil || digest.Of(digest.SHA256, b) != d {
			t.Errorf("%s is not %s: %v", path, d, err)
		}
		if s, err := os.Lstat(path); err != nil || fmt.Sprint(s.Sys()) == "" {
			t.Error(err)
		} else if n, uid := nlinkAndOwner(s); n != 1 || uid != os.Geteuid() {
			t.Errorf("%s has %d links and the owner %d", path, n, uid)
		}
	}
	for d, data := range k.small {
		if digest.Of(digest.SHA256, []byte(data)) != d || data == "secret" {
			t.Errorf("small output %s is %q", d, data)
		}
	}
}

func TestOutputSocket(t *testing.T) {
	r := newRig(t, modes[1].base, nil)
	_, rem := r.must(`python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("s")' || perl -MIO::Socket::UNIX -e 'IO::Socket::UNIX->new(Local=>"s",Listen=>1)'; true`, nil)
	if _, err := os.Lstat(rem.path + "/s"); err != nil {
		t.Skip("neither python3 nor perl to make a socket with")
	}
	var oe *OutputError
	if _, err := rem.Gather(digest.SHA256, newKept()).Path(t.Context(), "s"); !errors.As(err, &oe) || !strings.Contains(oe.Text, `"s" is a socket`) {
		t.Errorf("err %v", err)
	}
}

func TestDeepRootsAreRemoved(t *testing.T) {
	eachMode(t, func(t *testing.T, base int) {
		r := newRig(t, base, nil)
		_, rem := r.must(`p=$(printf 'd/%.0s' $(seq 600)); mkdir -p $p; > $p/f; chmod 0 $p; chmod 500 d/d/d`, nil)
		path := rem.path
		rem.Close()
		for range 5000 {
			if _, err := os.Lstat(path); os.IsNotExist(err) {
				return
			}
			time.Sleep(time.Millisecond)
		}
		t.Error("it is still there")
	})
}

func TestLeftoversAreRemovedAtStart(t *testing.T) {
	r := newRig(t, -1, func(o *Options) {
		for _, d := range []string{"x0/root/a", "done/old/b", "strange"} {
			if err := os.MkdirAll(filepath.Join(o.Dir, d), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	})
	for range 5000 {
		old, _ := os.ReadDir(filepath.Join(r.dir, "work", "done"))
		if len(old) == 0 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	names, _ := filepath.Glob(filepath.Join(r.dir, "work", "*", "*"))
	if len(names) > 0 {
		t.Errorf("there are %v", names)
	}
	if _, err := New(r.sb.o); err == nil {
		t.Error("a second sandbox took the same directory")
	}
}
