package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	gstatus "google.golang.org/grpc/status"

	"github.com/remex-build/terraform-provider-remex/cmd/remex/internal/reapitest"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
)

func TestMain(m *testing.M) {
	// What the caller's shell says of a cluster is none of the tests' business.
	_ = os.Unsetenv("REMEX_CLUSTER")
	_ = os.Unsetenv("REMEX_INSTANCE")
	goleak.VerifyTestMain(m)
}

// outcome is what a command line left.
type outcome struct {
	code           int
	stdout, stderr string
}

func remex(t *testing.T, args ...string) outcome {
	t.Helper()
	return remexWith(t.Context(), "", args...)
}

func remexWith(ctx context.Context, stdin string, args ...string) outcome {
	var stdout, stderr bytes.Buffer
	code := run(ctx, args, strings.NewReader(stdin), &stdout, &stderr)
	return outcome{code, stdout.String(), stderr.String()}
}

// want fails unless the code is as said and every text is on stderr.
func (o outcome) want(t *testing.T, code int, stderr ...string) {
	t.Helper()
	if o.code != code {
		t.Errorf("exit code %d instead of %d; stderr: %s", o.code, code, o.stderr)
	}
	for _, s := range stderr {
		if !strings.Contains(o.stderr, s) {
			t.Errorf("%q is not in stderr: %s", s, o.stderr)
		}
	}
}

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

// large is more than a batch takes, and does not look like anything.
func large() string {
	b := make([]byte, 5<<20+123)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return string(b)
}

func TestEveryCommandTeaches(t *testing.T) {
	for _, args := range [][]string{
		{},
		{"scheduler"},
		{"worker"},
		{"dev"},
		{"status"},
		{"bazelrc"},
		{"cas", "put"},
		{"cas", "get"},
		{"cas", "stat"},
		{"exec"},
	} {
		o := remex(t, append(args, "--help")...)
		o.want(t, 0)
		if len(args) > 0 && !strings.Contains(o.stdout, "Examples:\n  remex "+strings.Join(args, " ")) && !strings.Contains(o.stdout, "| remex ") {
			t.Errorf("remex %v --help has no examples:\n%s", args, o.stdout)
		}
	}
	if o := remex(t, "version"); o.stdout != "remex dev\n" {
		t.Errorf("version: %q", o.stdout)
	}
}

func TestWrongUsageIsExplained(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"bogus"}, `unknown command "bogus"`},
		{[]string{"status", "extra"}, "Run `remex status --help`"},
		{[]string{"status", "-o", "xml"}, "neither table nor json"},
		{[]string{"status", "--cluster", "grpcs://x:1"}, "TLS is not available yet"},
		{[]string{"status", "--cluster", "http://x:1"}, "addresses begin with grpc://"},
		{[]string{"scheduler", "--disk-size", "1GiB"}, "disk-size is a setting of a worker, and this is a scheduler"},
		{[]string{"worker", "--disk-sise", "1GiB"}, "did you mean disk-size?"},
		{[]string{"worker", "--disk-size", "1G", "--name", "a b", "--min-age=1"}, `--min-age: "1" is no duration`},
		{[]string{"worker", "--listen-ops", "0.0.0.0:1"}, "TLS is not available yet"},
		{[]string{"dev", "--listen", "0.0.0.0:1"}, "not a loopback address"},
		{[]string{"dev", "--disk-size", "x"}, "--disk-size: "},
		{[]string{"dev", "--log-level", "loud"}, "--log-level: "},
		{[]string{"dev", "--listen", "127.0.0.1:0", "--scheduler-flag=--max-qeue=1"}, "--scheduler-flag: --max-qeue: "},
		{[]string{"dev", "--listen", "127.0.0.1:0", "--worker-flag=--min-age=5"}, `--worker-flag: --min-age: "5" is no duration`},
		{[]string{"cas", "get", "abc"}, "is no digest"},
		{[]string{"cas", "get", "a", "b"}, "usage: remex cas get DIGEST"},
		{[]string{"cas", "put"}, "requires at least 1 arg"},
		{[]string{"cas", "put", "--cluster", "http://x:1", "/dev/null"}, "addresses begin with grpc://"},
		{[]string{"exec"}, "there is no command to run"},
		{[]string{"exec", "--cluster", "http://x:1", "--", "true"}, "addresses begin with grpc://"},
		{[]string{"bazelrc", "--jobs", "0"}, "at least one"},
		{[]string{"bazelrc", "--cluster", "host"}, "write the address as grpc://host:port"},
		{[]string{"exec", "--input", "../x", "--", "true"}, "--input ../x=x"},
		{[]string{"exec", "--env", "x", "--", "true"}, "write NAME=VALUE"},
		{[]string{"exec", "--output", "/x", "--", "true"}, "below the input root"},
	} {
		o := remex(t, tt.args...)
		o.want(t, exitUsage, tt.want)
	}
}

func TestClusterThatIsNotThereIsNamed(t *testing.T) {
	for _, args := range [][]string{{"status"}, {"cas", "stat", digest.Empty(digest.SHA256).String()}} {
		remex(t, append(args, "--cluster", "grpc://127.0.0.1:1")...).want(t, exitFailure, "grpc://127.0.0.1:1 cannot be reached", "remex dev")
	}
	remex(t, "exec", "--cluster", "grpc://127.0.0.1:1", "--", "true").want(t, exitNotRun, "cannot be reached")
}

func TestBazelrcNeedsNoScheme(t *testing.T) {
	remex(t, "bazelrc", "--cluster", "build.example:8980").want(t, 0)
	if o := remex(t, "bazelrc", "--cluster", "build.example:8980"); !strings.Contains(o.stdout, "--remote_executor=grpc://build.example:8980\n") {
		t.Errorf("no usable address in:\n%s", o.stdout)
	}
}

func TestBazelrcQuotesTheInstance(t *testing.T) {
	o := remex(t, "bazelrc", "--instance", `team's one`)
	o.want(t, 0)
	if want := `--remote_instance_name='team\'s one'` + "\n"; !strings.Contains(o.stdout, want) {
		t.Errorf("%q is not in:\n%s", want, o.stdout)
	}
}

func TestBazelrcHasTheCluster(t *testing.T) {
	o := remex(t, "bazelrc", "--cluster", "grpc://127.0.0.1:1234", "--jobs", "7", "--instance", "team")
	o.want(t, 0)
	for _, want := range []string{"--remote_executor=grpc://127.0.0.1:1234\n", "--jobs=7\n", "--remote_instance_name=team\n"} {
		if !strings.Contains(o.stdout, want) {
			t.Errorf("%q is not in:\n%s", want, o.stdout)
		}
	}
	for line := range strings.Lines(o.stdout) {
		if !strings.HasPrefix(line, "#") && !strings.HasPrefix(line, "build:remex --") && line != "\n" {
			t.Errorf("no line of a .bazelrc: %q", line)
		}
	}
}

func TestFilesGoRoundThroughTheStore(t *testing.T) {
	s := reapitest.Start(t)
	dir := t.TempDir()
	for name, text := range map[string]string{"empty": "", "small": "small\n", "large": large()} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(dir, name)
			write(t, path, text, 0o644)
			put := remex(t, "cas", "put", "--cluster", s.Target, path)
			put.want(t, 0)
			d := strings.TrimSpace(put.stdout)
			if want := digest.Of(digest.SHA256, []byte(text)).String(); d != want {
				t.Errorf("digest %s instead of %s", d, want)
			}
			if o := remex(t, "cas", "stat", "--cluster", s.Target, d); o.stdout != d+" present\n" || o.code != 0 {
				t.Errorf("stat: %+v", o)
			}
			if o := remex(t, "cas", "get", "--cluster", s.Target, d); o.stdout != text || o.code != 0 {
				t.Errorf("get: code %d, %d bytes, %s", o.code, len(o.stdout), o.stderr)
			}
			remex(t, "cas", "get", "--cluster", s.Target, d, "-o", path+".back").want(t, 0)
			if b, _ := os.ReadFile(path + ".back"); string(b) != text {
				t.Errorf("got %d bytes back", len(b))
			}
		})
	}
	before := s.Uploads
	remex(t, "cas", "put", "--cluster", s.Target, filepath.Join(dir, "large")).want(t, 0)
	if s.Uploads != before {
		t.Error("what was there was sent again")
	}
}

func TestStandardInputIsPut(t *testing.T) {
	s := reapitest.Start(t)
	o := remexWith(t.Context(), "hello", "cas", "put", "--cluster", s.Target, "-")
	if want := digest.Of(digest.SHA256, []byte("hello")).String() + "\n"; o.stdout != want {
		t.Errorf("%+v", o)
	}
}

func TestBrokenTransfersGoOnWhereTheyStopped(t *testing.T) {
	s := reapitest.Start(t)
	path := filepath.Join(t.TempDir(), "large")
	write(t, path, large(), 0o644)
	s.Breaks = 3
	put := remex(t, "cas", "put", "--cluster", s.Target, path)
	put.want(t, 0)
	s.Breaks = 3
	if o := remex(t, "cas", "get", "--cluster", s.Target, strings.TrimSpace(put.stdout)); o.stdout != large() {
		t.Errorf("got %d bytes, code %d: %s", len(o.stdout), o.code, o.stderr)
	}
}

func TestMissingAndWrongBlobsAreNotReturned(t *testing.T) {
	s := reapitest.Start(t)
	out := filepath.Join(t.TempDir(), "out")
	absent := digest.Of(digest.SHA256, []byte("absent")).String()
	remex(t, "cas", "get", "--cluster", s.Target, absent, "-o", out).want(t, exitFailure, "holds no blob "+absent)
	if o := remex(t, "cas", "stat", "--cluster", s.Target, absent); o.code != exitFailure || o.stdout != absent+" missing\n" {
		t.Errorf("stat: %+v", o)
	}
	p := s.Put([]byte("right"))
	s.Corrupt(p, []byte("wrong"))
	remex(t, "cas", "get", "--cluster", s.Target, fmt.Sprintf("%s/%d", p.Hash, p.SizeBytes), "-o", out).want(t, exitFailure, "instead")
	left, _ := filepath.Glob(filepath.Join(filepath.Dir(out), "*"))
	if hidden, _ := filepath.Glob(filepath.Join(filepath.Dir(out), ".*")); len(left)+len(hidden) > 0 {
		t.Errorf("left behind: %v %v", left, hidden)
	}
}

// list is an input root as text.
func list(t *testing.T, s *reapitest.Server, d *repb.Digest, prefix string) (lines []string) {
	t.Helper()
	var dir repb.Directory
	if err := s.Message(d, &dir); err != nil {
		t.Fatal(err)
	}
	for _, f := range dir.Files {
		b, _ := s.Blob(f.Digest)
		lines = append(lines, fmt.Sprintf("%s%s x=%v %s", prefix, f.Name, f.IsExecutable, b))
	}
	for _, l := range dir.Symlinks {
		lines = append(lines, fmt.Sprintf("%s%s -> %s", prefix, l.Name, l.Target))
	}
	for _, sub := range dir.Directories {
		lines = append(lines, prefix+sub.Name+"/")
		lines = append(lines, list(t, s, sub.Digest, prefix+sub.Name+"/")...)
	}
	return lines
}

func TestExecSendsInputsAndBringsOutputs(t *testing.T) {
	s := reapitest.Start(t)
	dir := t.TempDir()
	t.Chdir(dir)
	write(t, "src/run.sh", "#!/bin/sh", 0o755)
	write(t, "src/deep/er/a.txt", "a", 0o644)
	write(t, "b", "b", 0o644)
	if err := os.MkdirAll("src/void", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("deep/er/a.txt", "src/link"); err != nil {
		t.Fatal(err)
	}
	var root []string
	s.Run = func(_ context.Context, s *reapitest.Server, a *repb.Action, c *repb.Command) *repb.ExecuteResponse {
		root = list(t, s, a.InputRootDigest, "")
		if diff := cmp.Diff([]string{"src/run.sh", "-v"}, c.Arguments); diff != "" {
			t.Error(diff)
		}
		if a.Timeout.AsDuration() != time.Minute || c.EnvironmentVariables[0].Name != "A" || c.EnvironmentVariables[0].Value != "1=2" ||
			a.Platform.Properties[0].Name != "OSFamily" || c.Platform.Properties[0].Value != "Linux" {
			t.Errorf("action %v, command %v", a, c)
		}
		sub := &repb.Directory{Files: []*repb.FileNode{{Name: "f", Digest: s.Put([]byte("in sub")), IsExecutable: true}}}
		tree := &repb.Tree{
			Root: &repb.Directory{
				Directories: []*repb.DirectoryNode{{Name: "sub", Digest: s.PutMessage(sub)}},
				Symlinks:    []*repb.SymlinkNode{{Name: "l", Target: "sub/f"}},
			},
			Children: []*repb.Directory{sub},
		}
		return &repb.ExecuteResponse{Result: &repb.ActionResult{
			StdoutRaw: []byte("to stdout"), StderrDigest: s.Put([]byte("to stderr")),
			OutputFiles: []*repb.OutputFile{
				{Path: "out/bin", Digest: s.Put([]byte("binary")), IsExecutable: true},
				{Path: "../escape", Digest: s.Put([]byte("escape"))},
				{Path: "not/asked", Digest: s.Put([]byte("x"))},
			},
			OutputDirectories: []*repb.OutputDirectory{{Path: "tree", TreeDigest: s.PutMessage(tree)}},
			OutputSymlinks:    []*repb.OutputSymlink{{Path: "sym", Target: "out/bin"}},
			ExecutionMetadata: &repb.ExecutedActionMetadata{Worker: "worker-1"},
		}}
	}
	o := remex(t, "exec", "--cluster", s.Target, "--input", "src", "--input", "b=moved/to/c", "--env", "A=1=2", "--platform", "OSFamily=Linux",
		"--timeout", "1m", "--output", "out/bin", "--output", "tree", "--output", "sym", "--output-dir", "here", "src/run.sh", "-v")
	o.want(t, 0, "waiting for a worker", "running on worker-1", "ran on worker-1, exit code 0", "to stderr")
	if o.stdout != "to stdout" {
		t.Errorf("stdout: %q", o.stdout)
	}
	if diff := cmp.Diff([]string{
		"moved/", "moved/to/", "moved/to/c x=false b",
		"src/", "src/run.sh x=true #!/bin/sh", "src/link -> deep/er/a.txt",
		"src/deep/", "src/deep/er/", "src/deep/er/a.txt x=false a", "src/void/",
	}, root); diff != "" {
		t.Error(diff)
	}
	for path, want := range map[string]string{"here/out/bin": "binary", "here/sym": "binary", "here/tree/l": "in sub"} {
		if b, err := os.ReadFile(path); string(b) != want {
			t.Errorf("%s: %q, %v", path, b, err)
		}
	}
	if info, err := os.Stat("here/out/bin"); err != nil || info.Mode()&0o100 == 0 {
		t.Errorf("out/bin: %v, %v", info, err)
	}
	for _, path := range []string{"escape", "here/not"} {
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("%s was written", path)
		}
	}
}

func TestExecExitsAsTheCommandDid(t *testing.T) {
	missing, _ := gstatus.New(codes.FailedPrecondition, "inputs are missing").WithDetails(&errdetails.PreconditionFailure{
		Violations: []*errdetails.PreconditionFailure_Violation{{Type: "MISSING", Subject: "blobs/abc/3"}},
	})
	for _, tt := range []struct {
		name   string
		resp   *repb.ExecuteResponse
		args   []string
		code   int
		stderr string
	}{
		{"code", &repb.ExecuteResponse{Result: &repb.ActionResult{ExitCode: 7}}, nil, 7, "exit code 7"},
		{"cached", &repb.ExecuteResponse{CachedResult: true, Result: &repb.ActionResult{}}, nil, 0, "found in the cache"},
		{"timeout", &repb.ExecuteResponse{
			Status: &status.Status{Code: int32(codes.DeadlineExceeded), Message: "execution timeout exceeded"},
			Result: &repb.ActionResult{StderrRaw: []byte("last words")},
		}, nil, exitTimeout, "last words"},
		{"missing input", &repb.ExecuteResponse{Status: missing.Proto()}, nil, exitNotRun, "missing blobs/abc/3"},
		{"absent output", &repb.ExecuteResponse{Result: &repb.ActionResult{}}, []string{"--output", "o"}, exitNotRun, "did not make o"},
		{"no result", &repb.ExecuteResponse{}, nil, exitNotRun, "no result"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Chdir(t.TempDir())
			s := reapitest.Start(t)
			s.Run = func(context.Context, *reapitest.Server, *repb.Action, *repb.Command) *repb.ExecuteResponse {
				return tt.resp
			}
			remex(t, append(append([]string{"exec", "--cluster", s.Target}, tt.args...), "--", "cmd")...).want(t, tt.code, tt.stderr)
		})
	}
}

func TestExecTakesUpABrokenOperation(t *testing.T) {
	t.Chdir(t.TempDir())
	s := reapitest.Start(t)
	runs := 0
	s.Run = func(context.Context, *reapitest.Server, *repb.Action, *repb.Command) *repb.ExecuteResponse {
		runs++
		return &repb.ExecuteResponse{Result: &repb.ActionResult{StdoutRaw: []byte("once")}}
	}
	s.Breaks = 1
	o := remex(t, "exec", "--cluster", s.Target, "-q", "--", "cmd")
	o.want(t, 0)
	if runs != 1 || s.Waits != 1 || o.stdout != "once" || o.stderr != "" {
		t.Errorf("%d runs, %d waits, %+v", runs, s.Waits, o)
	}
}

// trigger pulls when text was written.
type trigger struct {
	b    bytes.Buffer
	text string
	pull func()
}

func (w *trigger) Write(p []byte) (int, error) {
	if strings.Contains(string(p), w.text) {
		w.pull()
	}
	return w.b.Write(p)
}

func TestInterruptedExecIsCancelled(t *testing.T) {
	t.Chdir(t.TempDir())
	s := reapitest.Start(t)
	ctx, cancel := context.WithCancel(t.Context())
	s.Run = func(ctx context.Context, _ *reapitest.Server, _ *repb.Action, _ *repb.Command) *repb.ExecuteResponse {
		<-ctx.Done()
		return nil
	}
	stderr := &trigger{text: "running on", pull: cancel}
	code := run(ctx, []string{"exec", "--cluster", s.Target, "--", "cmd"}, nil, io.Discard, stderr)
	outcome{code: code, stderr: stderr.b.String()}.want(t, exitInterrupt, "interrupted")
	if len(s.Cancelled) != 1 {
		t.Errorf("cancelled: %v", s.Cancelled)
	}
}

func TestStatusShowsTheCluster(t *testing.T) {
	s := reapitest.Start(t)
	remex(t, "status", "--cluster", s.Target).want(t, exitFailure, "does not offer this")
	up := time.Now().Add(-90 * time.Second).UnixMilli()
	s.Nodes = &pb.StatusResponse{
		AnsweredBy: "scheduler-1@5", Version: "v1",
		Nodes: []*pb.NodeStatus{
			{Name: "scheduler-1", Role: "scheduler", State: "ready", Address: "127.1.1.1:8981", Reachable: true, StartedUnixMs: up, ActionCacheEntries: 12},
			{Name: "worker-1", Role: "worker", Pool: "default", State: "ready", Reachable: true, StartedUnixMs: up, Executors: 4, Running: 1, DiskCapacity: 10 << 30, DiskUsed: 1 << 20, Blobs: 99},
			{Name: "worker-2", Role: "worker", Pool: "default", State: "ready", Problem: "connection refused", StartedUnixMs: up},
		},
		Pools:   []*pb.PoolStatus{{Name: "default", Workers: 2, Executors: 4, Running: 1}},
		Queue:   &pb.QueueStatus{Queued: 3, Executing: 1, OldestQueuedMs: 1500},
		Storage: &pb.StorageStatus{Capacity: 10 << 30, Used: 1 << 20, Blobs: 99, Replicas: 2, Disks: 1, RepairBlobs: 5, RepairBytes: 2 << 20, RepairLagMs: 61000},
	}
	o := remex(t, "status", "--cluster", s.Target)
	o.want(t, 0)
	for _, want := range []string{
		"scheduler-1  scheduler  -        -     ready", "1m30s", "1/4", "1MiB/10GiB", "unreachable", "worker-2 cannot be reached: connection refused",
		"3 waiting, 1 running; the first has waited 1.5s", "12 entries",
		"5 to be made (2MiB), the first for 1m1s",
	} {
		if !strings.Contains(o.stdout, want) {
			t.Errorf("%q is not in:\n%s", want, o.stdout)
		}
	}
	var m map[string]any
	if o := remex(t, "status", "--cluster", s.Target, "-o", "json"); json.Unmarshal([]byte(o.stdout), &m) != nil || m["answered_by"] != "scheduler-1@5" {
		t.Errorf("json: %s", o.stdout)
	}
}

func TestClusterComesFromTheEnvironment(t *testing.T) {
	s := reapitest.Start(t)
	t.Setenv("REMEX_CLUSTER", s.Target)
	remexWith(t.Context(), "x", "cas", "put", "-").want(t, 0)
}
