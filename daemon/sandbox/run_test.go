package sandbox

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestExits(t *testing.T) {
	eachMode(t, func(t *testing.T, base int) {
		r := newRig(t, base, nil)
		for _, c := range []struct {
			script   string
			code     int
			out, err string
		}{
			{"true", 0, "", ""},
			{"exit 7", 7, "", ""},
			{"echo out; echo err >&2", 0, "out\n", "err\n"},
			{"kill -9 $$", 137, "", ""},
			{"kill -TERM $$", 143, "", ""},
			{"umask", 0, "0022\n", ""},
			{"cat", 0, "", ""}, // stdin is empty
			{"env | grep -v ^PWD= | grep -v ^SHLVL= | grep -v ^_= | grep -v ^OLDPWD=", 0, "PATH=/usr/bin:/bin\n", ""},
			{"echo again > /dev/stdout", 0, "again\n", ""},
			{"ulimit -c", 0, "0\n", ""},
		} {
			exit, rem, err := r.shell(c.script, nil, 0)
			if err != nil {
				t.Fatalf("%q: %v", c.script, err)
			}
			if exit.Code != c.code || string(rem.Stdout.Data) != c.out || string(rem.Stderr.Data) != c.err {
				t.Errorf("%q: exit %d, stdout %q, stderr %q; want %d, %q, %q", c.script, exit.Code, rem.Stdout.Data, rem.Stderr.Data, c.code, c.out, c.err)
			}
			if exit.Ended.Before(exit.Started) {
				t.Errorf("%q ended before it started", c.script)
			}
		}
	})
}

func TestEachExecutorHasItsOwnUID(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root may set uids")
	}
	r, other := newRig(t, 0, nil), newRig(t, 0, nil)
	out, _ := r.must("id -u; id -g; id -G", nil)
	uid := strconv.Itoa(r.sb.Executor(0).uid)
	if want := strings.Repeat(uid+"\n", 3); out != want {
		t.Errorf("ids are %q, want %q", out, want)
	}
	seen := map[int]bool{}
	for _, e := range append(r.sb.executors, other.sb.executors...) {
		if seen[e.uid] {
			t.Errorf("uid %d is used twice", e.uid)
		}
		seen[e.uid] = true
	}
}

func TestArgv0(t *testing.T) {
	eachMode(t, func(t *testing.T, base int) {
		r := newRig(t, base, nil)
		script := r.disk.add(t, "#!/bin/sh\necho \"$0\"\n")
		plain := r.disk.add(t, "echo no interpreter line $1\n")
		tool := &Tree{Files: []File{{Name: "tool", Digest: script, Executable: true}, {Name: "data", Digest: script}, {Name: "plain", Digest: plain, Executable: true}}}
		tree := &Tree{Dirs: []Subtree{{"bin", tool}, {"wd", &Tree{Dirs: []Subtree{{"sub", tool}}}}}}
		for _, c := range []struct {
			name, dir string
			argv, env []string
			out, fail string
		}{
			{"by PATH", "", []string{"sh", "-c", "echo hi"}, []string{"PATH=/nowhere:/bin"}, "hi\n", ""},
			{"by the default path", "", []string{"sh", "-c", "echo hi"}, nil, "hi\n", ""},
			{"a PATH within the root", "", []string{"tool"}, []string{"PATH=bin"}, "bin/tool\n", ""},
			{"relative to the working directory", "wd", []string{"sub/tool"}, nil, "sub/tool\n", ""},
			{"relative to the input root", "wd", []string{"bin/tool"}, nil, "*/root/bin/tool\n", ""},
			{"no interpreter line", "", []string{"bin/plain", "x"}, nil, "no interpreter line x\n", ""},
			{"not in PATH", "", []string{"remex-nope"}, []string{"PATH=/bin"}, "", `command not found: "remex-nope"`},
			{"an empty PATH is the working directory", "bin", []string{"tool"}, []string{"PATH="}, "./tool\n", ""},
			{"no such file", "", []string{"bin/nope"}, nil, "", `command not found: "bin/nope"`},
			{"no such absolute file", "", []string{"/bin/remex-nope"}, nil, "", `command not found: "/bin/remex-nope"`},
			{"not executable", "", []string{"bin/data"}, nil, "", "not executable"},
			{"a directory", "", []string{"./bin"}, nil, "", "not a regular file"},
			{"working directory is made", "new/dir", []string{"pwd"}, nil, "*/root/new/dir\n", ""},
		} {
			exit, rem, err := r.run(t.Context(), Command{Argv: c.argv, Env: c.env, Dir: c.dir}, tree)
			var ce *CommandError
			if c.fail != "" {
				if !errors.As(err, &ce) || !strings.Contains(ce.Text, c.fail) {
					t.Errorf("%s: %v, want a CommandError with %q", c.name, err, c.fail)
				}
				continue
			}
			if err != nil || exit.Code != 0 {
				t.Errorf("%s: exit %d, %v", c.name, exit.Code, err)
				continue
			}
			out := string(rem.Stdout.Data)
			if want, ok := strings.CutPrefix(c.out, "*"); !ok && out != c.out || !strings.HasSuffix(out, want) {
				t.Errorf("%s: stdout %q, want %q", c.name, out, c.out)
			}
		}
	})
}

func TestNothingSurvives(t *testing.T) {
	eachMode(t, func(t *testing.T, base int) {
		r := newRig(t, base, nil)
		for name, script := range map[string]string{
			"background process":  `sleep 300 & echo $! > pids`,
			"daemon":              `setsid sh -c '(sleep 300 & echo $! > pids); exit 0' ; until [ -s pids ]; do sleep 0.01; done`,
			"deaf to signals":     `(trap '' TERM HUP INT; echo $$ > /dev/null; sleep 300 & echo $! > pids; wait) & until [ -s pids ]; do sleep 0.01; done`,
			"stopped process":     `sleep 300 & echo $! > pids; kill -STOP $!`,
			"double fork, setsid": `(setsid setsid sleep 300 </dev/null >/dev/null 2>&1 & echo $! > pids) & wait`,
			"many":                `for i in 1 2 3 4 5 6 7 8 9 10; do sh -c 'sleep 300 & sleep 301 & wait' & echo $! >> pids; done`,
		} {
			began := time.Now()
			_, rem := r.must(script, nil)
			if time.Since(began) > 20*time.Second {
				t.Errorf("%s: it took %v", name, time.Since(began))
			}
			b, err := os.ReadFile(rem.path + "/pids")
			if err != nil || len(b) == 0 {
				t.Fatalf("%s: no pids: %v", name, err)
			}
			for f := range strings.FieldsSeq(string(b)) {
				if pid, _ := strconv.Atoi(f); alive(pid) {
					t.Errorf("%s: process %d is alive", name, pid)
				}
			}
			if p := below(r.sb.Executor(0).proc.cmd.Process.Pid); len(p) > 0 {
				t.Errorf("%s: the runner has children %v", name, p)
			}
		}
	})
}

func TestForkBombEnds(t *testing.T) {
	eachMode(t, func(t *testing.T, base int) {
		r := newRig(t, base, nil)
		// Each generation forks the next and dies, so that a list of processes
		// is out of date before it has been read; at most 20 chains.
		script := `cat > b.sh <<'E'
n=$1; [ "$n" -gt 100 ] && exit; sh b.sh $((n+1)) & exit
E
for i in 1 2 3 4 5 6 7 8 9 10; do sh b.sh 0 & done; sleep 0.05`
		r.must(script, nil)
		if p := below(r.sb.Executor(0).proc.cmd.Process.Pid); len(p) > 0 {
			t.Errorf("the runner has children %v", p)
		}
	})
}

func TestTimeout(t *testing.T) {
	eachMode(t, func(t *testing.T, base int) {
		r := newRig(t, base, nil)
		t.Run("gives time to write results", func(t *testing.T) {
			exit, rem, err := r.shell(`trap 'echo done > test.xml; echo bye; exit 3' TERM; echo hello; sleep 300 & wait`, nil, 200*time.Millisecond)
			if err != nil {
				t.Fatal(err)
			}
			if !exit.TimedOut || exit.Code != 3 || string(rem.Stdout.Data) != "hello\nbye\n" {
				t.Errorf("exit %+v, stdout %q", exit, rem.Stdout.Data)
			}
			if b, _ := os.ReadFile(rem.path + "/test.xml"); string(b) != "done\n" {
				t.Errorf("test.xml holds %q", b)
			}
		})
		t.Run("kills who does not listen", func(t *testing.T) {
			exit, _, err := r.shell(`trap '' TERM; sleep 300`, nil, 100*time.Millisecond)
			if err != nil {
				t.Fatal(err)
			}
			if d := exit.Ended.Sub(exit.Started); !exit.TimedOut || d < r.sb.o.Limits.Grace || d > r.sb.o.Limits.Grace+5*time.Second {
				t.Errorf("exit %+v after %v", exit, d)
			}
		})
		t.Run("is none for who ends in time", func(t *testing.T) {
			if exit, _, err := r.shell(`exit 0`, nil, time.Minute); err != nil || exit.TimedOut {
				t.Errorf("exit %+v, %v", exit, err)
			}
		})
	})
}

func TestCancelKillsAtOnce(t *testing.T) {
	r := newRig(t, 0, nil)
	r.must("true", nil) // there is a runner
	ctx, cancel := context.WithCancel(t.Context())
	e := r.sb.Executor(0)
	if err := e.Acquire(ctx); err != nil {
		t.Fatal(err)
	}
	defer e.Release()
	p, _ := NewPlan(&Tree{})
	if err := e.BuildRoot(ctx, p, r.disk, nil); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, err := e.Run(ctx, Command{Argv: []string{"sleep", "300"}}); !errors.Is(err, context.Canceled) {
		t.Errorf("err %v", err)
	}
	if p := below(e.proc.cmd.Process.Pid); len(p) > 0 {
		t.Errorf("alive: %v", p)
	}
}

func TestRunnerDies(t *testing.T) {
	eachMode(t, func(t *testing.T, base int) {
		r := newRig(t, base, nil)
		r.must("echo", nil)
		// The action kills what runs it, from outside its uid.
		pid := r.sb.Executor(0).proc.cmd.Process.Pid
		e := r.sb.Executor(0)
		file := filepath.Join(r.dir, "work", "x0", "root", "pid")
		go func() {
			for range 1000 {
				if b, err := os.ReadFile(file); err == nil && strings.HasSuffix(string(b), "\n") {
					break
				}
				time.Sleep(time.Millisecond)
			}
			if p, err := os.FindProcess(pid); err == nil {
				_ = p.Kill()
			}
		}()
		_, _, err := r.shell("sleep 300 & echo $! > pid; wait", nil, 0)
		if err == nil {
			t.Fatal("the death of a runner went unnoticed")
		}
		if _, ok := errors.AsType[*CommandError](err); ok {
			t.Errorf("it was blamed on the command: %v", err)
		}
		for _, p := range processes() {
			if l, _ := os.Readlink("/proc/" + strconv.Itoa(p.pid) + "/cwd"); strings.HasPrefix(l, r.dir) && !p.zombie {
				t.Errorf("process %d survives in %s", p.pid, l)
			}
		}
		if out, _ := r.must("echo next", nil); out != "next\n" {
			t.Errorf("the next action wrote %q", out)
		}
		if e.proc.cmd.Process.Pid == pid {
			t.Error("no new runner")
		}
	})
}

func TestStreamsAreBounded(t *testing.T) {
	eachMode(t, func(t *testing.T, base int) {
		r := newRig(t, base, func(o *Options) { o.Limits.MaxStream = 1 << 20 })
		began := time.Now()
		written := "1000000000"
		if base < 0 {
			written = "100000000" // the same code: once is enough
		}
		exit, rem, err := r.shell("echo start; head -c "+written+" /dev/zero; echo oops >&2; exit 5", nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		if exit.Code != 5 || !rem.Stdout.Truncated || rem.Stderr.Truncated || string(rem.Stderr.Data) != "oops\n" {
			t.Errorf("exit %d, stdout cut %v, stderr %q", exit.Code, rem.Stdout.Truncated, rem.Stderr.Data)
		}
		b, err := os.ReadFile(rem.Stdout.Path)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(string(b), "start\n\x00") || !strings.HasSuffix(string(b), "\nremex: what was written beyond 1048576 bytes has been dropped\n") || len(b) > 1<<20+100 {
			t.Errorf("stdout has %d bytes, ends with %q", len(b), b[len(b)-80:])
		}
		if d := time.Since(began); d > 30*time.Second {
			t.Errorf("it took %v", d)
		}
		if out, _ := r.must("echo next", nil); out != "next\n" {
			t.Errorf("the next action wrote %q", out)
		}
	})
}

func TestStreamsOfKilledActionsAreGone(t *testing.T) {
	eachMode(t, func(t *testing.T, base int) {
		r := newRig(t, base, func(o *Options) { o.Limits.MaxBytes = 8 << 20 })
		said := filepath.Join(r.dir, "work", "x0", "root", "said")
		const speak = "echo of another; echo of another >&2; "
		for name, script := range map[string]string{
			"by its caller":         speak + "> said; sleep 60",
			"with much to say":      "head -c 100000 /dev/zero; " + speak + "> said; sleep 60",
			"for using up its disk": speak + "head -c 20000000 /dev/zero > big; sleep 60",
		} {
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				for ctx.Err() == nil {
					if _, err := os.Stat(said); err == nil {
						cancel()
					}
					time.Sleep(time.Millisecond)
				}
			}()
			_, _, err := r.run(ctx, Command{Argv: []string{"/bin/sh", "-c", script}, Env: []string{"PATH=/usr/bin:/bin"}}, nil)
			cancel()
			if err == nil {
				t.Fatalf("%q ended well", script)
			}
			_, rem := r.must("echo out; echo err >&2", nil)
			if out, err := string(rem.Stdout.Data), string(rem.Stderr.Data); out != "out\n" || err != "err\n" {
				t.Errorf("one was killed %s, the next one wrote %.40q and %.40q", name, out, err)
			}
		}
	})
}

// An action may pass its stdout to a process that it cannot be blamed for.
func TestStreamsThatOthersHaveOpen(t *testing.T) {
	for name, script := range map[string]string{
		"nothing": "true", "a little": "echo hello", "a lot": "head -c 100000 /dev/zero",
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, 0, nil)
			r.must("true", nil)
			path := r.sb.Executor(0).out[0].path
			r.must("echo hello; sleep 300 >&2 &", nil)
			if now := r.sb.Executor(0).out[0].path; now != path {
				t.Errorf("%s is not used again, but %s", path, now)
			}
			w, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			_, rem := r.must(script, nil)
			if _, err := w.WriteString("forged"); err != nil {
				t.Fatal(err)
			}
			if rem.Stdout.Path != "" {
				if b, err := os.ReadFile(rem.Stdout.Path); err != nil || int64(len(b)) != rem.Stdout.Size {
					t.Errorf("%d bytes became %d, %v", rem.Stdout.Size, len(b), err)
				}
			}
			if out, _ := r.must("echo next", nil); out != "next\n" {
				t.Errorf("the next action wrote %.40q", out)
			}
		})
	}
}

func TestBudget(t *testing.T) {
	eachMode(t, func(t *testing.T, base int) {
		r := newRig(t, base, func(o *Options) { o.Limits.MaxBytes, o.Limits.MaxInodes = 8<<20, 50 })
		for name, script := range map[string]string{
			"bytes":  "head -c 20000000 /dev/zero > big; sleep 60",
			"inodes": "mkdir d; for i in 0 1 2 3 4 5 6 7 8 9; do for j in 1 2 3 4 5 6; do > d/$i$j; done; done; sleep 60",
		} {
			_, _, err := r.shell(script, nil, 0)
			var be *BudgetError
			if !errors.As(err, &be) || !strings.Contains(be.Text, "n1") || !strings.Contains(be.Text, "budget") {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

func TestNewRefusesInARunner(t *testing.T) {
	t.Setenv(runnerEnv, "1")
	if _, err := New(Options{Dir: t.TempDir()}); !errors.Is(err, ErrInsideRunner) {
		t.Errorf("err %v", err)
	}
}

// beDaemon is a daemon that runs one endless action, for its death.
func beDaemon(dir string) {
	base, _ := strconv.Atoi(os.Getenv("REMEX_TEST_BASE"))
	sb, err := New(Options{Dir: dir, Executors: 1, UIDBase: base, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		panic(err)
	}
	e, ctx := sb.Executor(0), context.Background()
	_ = e.Acquire(ctx)
	p, _ := NewPlan(&Tree{})
	if err := e.BuildRoot(ctx, p, disk{}, nil); err != nil {
		panic(err)
	}
	_, err = e.Run(ctx, Command{Argv: []string{"/bin/sh", "-c", "setsid sleep 300 & echo $! >> pids; echo $$ >> pids; wait"}})
	panic(err)
}

func TestDaemonDies(t *testing.T) {
	eachMode(t, func(t *testing.T, base int) {
		dir := t.TempDir()
		daemon := exec.CommandContext(t.Context(), "/proc/self/exe")
		daemon.Env = append(os.Environ(), "REMEX_TEST_DAEMON="+dir, "REMEX_TEST_BASE="+strconv.Itoa(base))
		daemon.Stderr = os.Stderr
		if err := daemon.Start(); err != nil {
			t.Fatal(err)
		}
		var pids []string
		for range 10000 {
			b, _ := os.ReadFile(filepath.Join(dir, "x0", "root", "pids"))
			if pids = strings.Fields(string(b)); len(pids) == 2 {
				break
			}
			time.Sleep(time.Millisecond)
		}
		if len(pids) != 2 {
			t.Fatal("the action did not start")
		}
		_ = daemon.Process.Kill()
		_ = daemon.Wait()
		for _, s := range pids {
			pid, _ := strconv.Atoi(s)
			for i := 0; alive(pid); i++ {
				if i == 10000 {
					t.Fatalf("process %d is alive", pid)
				}
				time.Sleep(time.Millisecond)
			}
		}
	})
}
