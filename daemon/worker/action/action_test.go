package action

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/remex-build/terraform-provider-remex/daemon/actioncache"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

func TestResult(t *testing.T) {
	r := newRig(t, nil)
	root := &repb.Directory{
		Files: []*repb.FileNode{{Name: "in", Digest: r.blob("input\n")}},
		Directories: []*repb.DirectoryNode{{Name: "pkg", Digest: r.message(&repb.Directory{
			Files: []*repb.FileNode{{Name: "tool", Digest: r.blob("#!/bin/sh\ncat ../in\n"), IsExecutable: true}},
		})}},
	}
	c := script("./tool > ../out/a; ./tool >&2; echo hi; head -c 100000 /dev/zero > ../out/big; chmod +x ../out/big")
	c.WorkingDirectory = "pkg"
	c.OutputPaths = []string{"../out/a", "../out/big", "../out/none"}
	task := r.task(c, root, nil)
	task.Instance = "inst"
	res := r.result(task)
	want := &repb.ActionResult{
		OutputFiles: []*repb.OutputFile{
			{Path: "../out/a", Digest: r.blob("input\n")},
			{Path: "../out/big", Digest: r.blob(strings.Repeat("\x00", 100000)), IsExecutable: true},
		},
		StdoutRaw: []byte("hi\n"), StdoutDigest: r.blob("hi\n"),
		StderrRaw: []byte("input\n"), StderrDigest: r.blob("input\n"),
	}
	if diff := cmp.Diff(want, res, protocmp.Transform(), protocmp.IgnoreFields(&repb.ActionResult{}, "execution_metadata")); diff != "" {
		t.Error(diff)
	}
	var cached repb.ActionResult
	if err := proto.Unmarshal(r.store.cached[actioncache.Key{Instance: "inst", Action: task.Action}], &cached); err != nil {
		t.Fatal(err)
	}
	want.StdoutRaw, want.StderrRaw = nil, nil
	want.ExecutionMetadata = res.GetExecutionMetadata()
	if diff := cmp.Diff(want, &cached, protocmp.Transform()); diff != "" {
		t.Errorf("cached: %s", diff)
	}
}

func TestMetadataRunsForward(t *testing.T) {
	r := newRig(t, nil)
	task := r.task(script("sleep 0.01"), nil, nil)
	task.QueuedAt = time.Now().Add(time.Hour) // by another node's clock
	m := r.result(task).GetExecutionMetadata()
	if m.GetWorker() != "w1" {
		t.Errorf("worker %q", m.GetWorker())
	}
	last := time.Time{}
	for i, ts := range []interface{ AsTime() time.Time }{
		m.GetQueuedTimestamp(), m.GetWorkerStartTimestamp(), m.GetInputFetchStartTimestamp(), m.GetInputFetchCompletedTimestamp(),
		m.GetExecutionStartTimestamp(), m.GetExecutionCompletedTimestamp(), m.GetOutputUploadStartTimestamp(), m.GetOutputUploadCompletedTimestamp(), m.GetWorkerCompletedTimestamp(),
	} {
		if ts.AsTime().Before(last) || ts.AsTime().Year() < 2000 {
			t.Errorf("timestamp %d is %v, after %v", i, ts.AsTime(), last)
		}
		last = ts.AsTime()
	}
	if d := m.GetVirtualExecutionDuration().AsDuration(); d < 10*time.Millisecond || d > 5*time.Second {
		t.Errorf("duration %v", d)
	}
}

func TestOnlyCleanResultsAreCached(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Limits.MaxStream = 1000 })
	for _, c := range []struct {
		name   string
		script string
		action func(*repb.Action)
		task   func(*Task)
		cached bool
		code   codes.Code
	}{
		{name: "success", script: "true", cached: true},
		{name: "failure", script: "exit 1"},
		{name: "death by signal", script: "kill -9 $$"},
		{name: "do_not_cache of the action", script: "true", action: func(a *repb.Action) { a.DoNotCache = true }},
		{name: "do_not_cache of the task", script: ":", task: func(t *Task) { t.DoNotCache = true }},
		{name: "cut stdout", script: "head -c 2000 /dev/zero"},
		{name: "timeout", script: "trap 'exit 0' TERM; sleep 60 & wait", action: func(a *repb.Action) { a.Timeout = durationpb.New(50 * time.Millisecond) }, code: codes.DeadlineExceeded},
	} {
		task := r.task(script(c.script), nil, c.action)
		if c.task != nil {
			c.task(task)
		}
		resp := r.run(task)
		if got := codes.Code(resp.GetStatus().GetCode()); got != c.code || resp.GetResult() == nil {
			t.Errorf("%s: status %v, result %v", c.name, resp.GetStatus(), resp.GetResult())
		}
		if _, ok := r.store.cached[actioncache.Key{Action: task.Action}]; ok != c.cached {
			t.Errorf("%s: cached is %v", c.name, ok)
		}
	}
}

func TestTimeoutKeepsWhatThereIs(t *testing.T) {
	r := newRig(t, nil)
	c := script(`trap 'echo "<xml/>" > test.xml; exit 1' TERM; echo out; echo err >&2; echo part > part; sleep 60 & wait`)
	c.OutputPaths = []string{"part", "test.xml"}
	resp := r.run(r.task(c, nil, func(a *repb.Action) { a.Timeout = durationpb.New(200 * time.Millisecond) }))
	res := resp.GetResult()
	if resp.GetStatus().GetMessage() != "execution timeout exceeded" || resp.GetStatus().GetCode() != int32(codes.DeadlineExceeded) {
		t.Errorf("status %v", resp.GetStatus())
	}
	if len(res.GetOutputFiles()) != 2 || r.content(res.GetOutputFiles()[1].GetDigest()) != "<xml/>\n" || r.content(res.GetStdoutDigest()) != "out\n" || r.content(res.GetStderrDigest()) != "err\n" {
		t.Errorf("result %v", res)
	}
}

func TestMissingInputsAreToldAtOnce(t *testing.T) {
	r := newRig(t, nil)
	gone := func(data string) *repb.Digest { return toProto(digest.Of(digest.SHA256, []byte(data))) }
	root := &repb.Directory{
		Files: []*repb.FileNode{{Name: "a", Digest: gone("a")}, {Name: "b", Digest: r.blob("b")}, {Name: "c", Digest: gone("a")}},
		Directories: []*repb.DirectoryNode{
			{Name: "d", Digest: gone("d")},
			{Name: "e", Digest: r.message(&repb.Directory{Files: []*repb.FileNode{{Name: "f", Digest: gone("f")}}})},
		},
	}
	subjects := func(resp *repb.ExecuteResponse) map[string]bool {
		if codes.Code(resp.GetStatus().GetCode()) != codes.FailedPrecondition || len(resp.GetStatus().GetDetails()) != 1 {
			t.Fatalf("status %v", resp.GetStatus())
		}
		var f errdetails.PreconditionFailure
		if err := resp.GetStatus().GetDetails()[0].UnmarshalTo(&f); err != nil {
			t.Fatal(err)
		}
		m := map[string]bool{}
		for _, v := range f.GetViolations() {
			if v.GetType() != "MISSING" || m[v.GetSubject()] {
				t.Errorf("violation %v", v)
			}
			m[v.GetSubject()] = true
		}
		return m
	}
	name := func(d *repb.Digest) string {
		p, _ := parseDigest(digest.SHA256, d)
		return "blobs/" + p.String()
	}
	task := r.task(script("true"), root, func(a *repb.Action) { a.CommandDigest = gone("command") })
	want := map[string]bool{name(gone("a")): true, name(gone("d")): true, name(gone("f")): true, name(gone("command")): true}
	if diff := cmp.Diff(want, subjects(r.run(task))); diff != "" {
		t.Error(diff)
	}
	r.blob("d")
	root.Directories = root.Directories[1:]
	want = map[string]bool{name(gone("a")): true, name(gone("f")): true}
	if diff := cmp.Diff(want, subjects(r.run(r.task(script("true"), root, nil)))); diff != "" {
		t.Error(diff)
	}
	task = &Task{ID: "x", Action: digest.Of(digest.SHA256, []byte("action"))}
	if diff := cmp.Diff(map[string]bool{name(gone("action")): true}, subjects(r.run(task))); diff != "" {
		t.Error(diff)
	}
}

func TestBadActionsAreRefused(t *testing.T) {
	r := newRig(t, nil)
	empty := r.blob("")
	file := func(names ...string) *repb.Directory {
		d := &repb.Directory{}
		for _, n := range names {
			d.Files = append(d.Files, &repb.FileNode{Name: n, Digest: empty})
		}
		return d
	}
	outputs := func(paths ...string) *repb.Command {
		c := script("true")
		c.OutputPaths = paths
		return c
	}
	for _, c := range []struct {
		name    string
		command *repb.Command
		root    *repb.Directory
		action  func(*repb.Action)
		code    codes.Code
		text    string
	}{
		{name: "command not found", command: &repb.Command{Arguments: []string{"no-such-tool"}}, text: `command not found: "no-such-tool"`},
		{name: "no arguments", command: &repb.Command{}, text: "no arguments"},
		{name: "NUL in an argument", command: &repb.Command{Arguments: []string{"echo", "a\x00b"}}, text: "NUL"},
		{name: "NUL in a variable", command: &repb.Command{Arguments: []string{"true"}, EnvironmentVariables: []*repb.Command_EnvironmentVariable{{Name: "A", Value: "\x00"}}}, text: `"A"`},
		{name: "= in a variable's name", command: &repb.Command{Arguments: []string{"true"}, EnvironmentVariables: []*repb.Command_EnvironmentVariable{{Name: "A=B"}}}, text: `"A=B"`},
		{name: "absolute output", command: outputs("/etc/passwd"), text: "/etc/passwd"},
		{name: "output outside", command: outputs("a/../../b"), text: "a/../../b"},
		{name: "NUL in an output", command: outputs("a\x00"), text: "NUL"},
		{name: "working directory outside", command: &repb.Command{Arguments: []string{"true"}, WorkingDirectory: "../x"}, text: "../x"},
		{name: "absolute working directory", command: &repb.Command{Arguments: []string{"true"}, WorkingDirectory: "/"}, text: "working_directory"},
		{name: "unknown node property", command: &repb.Command{Arguments: []string{"true"}, OutputNodeProperties: []string{"colour"}}, text: "colour"},
		{name: "a slash in a name", root: file("a/b"), text: `"a/b"`},
		{name: "dot dot", root: file(".."), text: `".."`},
		{name: "dot", root: file("."), text: `"."`},
		{name: "no name", root: file(""), text: `""`},
		{name: "NUL in a name", root: file("a\x00"), text: `"a\x00"`},
		{name: "a name twice", root: file("a", "b", "a"), text: `"a" is there twice`},
		{name: "a file and a directory of one name", root: &repb.Directory{Files: file("a").GetFiles(), Directories: []*repb.DirectoryNode{{Name: "a", Digest: empty}}}, text: `"a" is there twice`},
		{name: "a bad digest in a tree", root: &repb.Directory{Files: []*repb.FileNode{{Name: "a", Digest: &repb.Digest{Hash: "xyz"}}}}, text: `"a"`},
		{name: "an empty symlink", root: &repb.Directory{Symlinks: []*repb.SymlinkNode{{Name: "l"}}}, text: `"l"`},
		{name: "an output below an input file", command: outputs("a/b"), root: file("a"), text: `"a"`},
		{name: "an output through a symlink that leads out", command: outputs("l/b/c"), root: &repb.Directory{Symlinks: []*repb.SymlinkNode{{Name: "l", Target: "/tmp"}}}, text: "leads out"},
		{name: "a bad command digest", action: func(a *repb.Action) { a.CommandDigest = &repb.Digest{Hash: "00"} }, text: "command_digest"},
		{name: "a bad root digest", action: func(a *repb.Action) { a.InputRootDigest = nil }, text: "input_root_digest"},
		{name: "a negative timeout", action: func(a *repb.Action) { a.Timeout = durationpb.New(-time.Second) }, text: "timeout"},
		{name: "a command that is none", action: func(a *repb.Action) { a.CommandDigest = r.blob("\xff\xff") }, text: "Command"},
		{name: "a FIFO", command: &repb.Command{Arguments: []string{"mkfifo", "p"}, OutputPaths: []string{"p"}}, code: codes.FailedPrecondition, text: `"p" is a FIFO`},
	} {
		command := c.command
		if command == nil {
			command = script("true")
		}
		if c.code == 0 {
			c.code = codes.InvalidArgument
		}
		resp := r.run(r.task(command, c.root, c.action))
		if codes.Code(resp.GetStatus().GetCode()) != c.code || !strings.Contains(resp.GetStatus().GetMessage(), c.text) || len(resp.GetStatus().GetDetails()) > 0 {
			t.Errorf("%s: %v", c.name, resp.GetStatus())
		}
	}
	if r.result(r.task(script("echo still here"), nil, nil)).GetStdoutRaw() == nil {
		t.Error("the next action wrote nothing")
	}
}

func TestAnOutputThatLeadsOutIsNotRead(t *testing.T) {
	r := newRig(t, nil)
	c := script("rmdir l; ln -s /etc l; echo linked")
	c.OutputPaths = []string{"l/passwd"}
	resp := r.run(r.task(c, nil, nil))
	if codes.Code(resp.GetStatus().GetCode()) != codes.FailedPrecondition || !strings.Contains(resp.GetStatus().GetMessage(), `"l/passwd"`) {
		t.Errorf("status %v", resp.GetStatus())
	}
	if string(resp.GetResult().GetStdoutRaw()) != "linked\n" {
		t.Errorf("result %v", resp.GetResult())
	}
}

func TestPrefetchIsUsed(t *testing.T) {
	r := newRig(t, nil)
	task := r.task(script("cat in"), &repb.Directory{Files: []*repb.FileNode{{Name: "in", Digest: r.blob("input")}}}, nil)
	r.a.Prefetch(t.Context(), task)
	clear(r.store.blobs) // only what is on the disk is left
	if res := r.result(task); string(res.GetStdoutRaw()) != "input" {
		t.Errorf("result %v", res)
	}
}

func TestPrefetchesAreBounded(t *testing.T) {
	r := newRig(t, nil)
	for range 50 {
		r.a.Prefetch(t.Context(), r.task(script("true"), nil, nil))
	}
	if n := len(r.a.ahead.m); n > r.a.ahead.limit {
		t.Errorf("%d are kept", n)
	}
}

func TestTroubleIsNotTheActionsFault(t *testing.T) {
	r := newRig(t, nil)
	task := r.task(script("echo x"), nil, nil)
	r.store.broken = errors.New("disk on fire")
	freed := false
	if _, err := r.a.Run(t.Context(), 0, task, func() {}, func() { freed = true }); err == nil || !freed {
		t.Errorf("err %v, freed %v", err, freed)
	}
	ctx, cancel := context.WithCancel(t.Context())
	r.store.broken = nil
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, err := r.a.Run(ctx, 0, r.task(script("sleep 100"), nil, nil), func() {}, func() {}); !errors.Is(err, context.Canceled) {
		t.Errorf("err %v", err)
	}
}

func TestChangedInputsSpoilTheResult(t *testing.T) {
	r := newRig(t, func(o *Options) { o.UIDBase = -1 })
	in := r.blob("input")
	root := &repb.Directory{Files: []*repb.FileNode{{Name: "in", Digest: in}}}
	task := r.task(script("chmod +w in; echo changed > in"), root, nil)
	if _, err := r.a.Run(t.Context(), 0, task, func() {}, func() {}); !errors.Is(err, errTainted) {
		t.Errorf("err %v", err)
	}
	if len(r.store.suspect) != 1 || len(r.store.cached) != 0 {
		t.Errorf("suspect %v, cached %d", r.store.suspect, len(r.store.cached))
	}
	if res := r.result(r.task(script("cat in"), root, nil)); string(res.GetStdoutRaw()) != "input" {
		t.Errorf("the next action read %q", res.GetStdoutRaw())
	}
}

func TestEvictedInputsAreFetchedAgain(t *testing.T) {
	r := newRig(t, nil)
	task := r.task(script("cat in"), &repb.Directory{Files: []*repb.FileNode{{Name: "in", Digest: r.blob("input")}}}, nil)
	r.a.Prefetch(t.Context(), task)
	clear(r.store.local)
	if res := r.result(task); string(res.GetStdoutRaw()) != "input" {
		t.Errorf("result %v", res)
	}
}

func TestTheExecutorIsFreeWhileOutputsAreStored(t *testing.T) {
	r := newRig(t, nil)
	r.store.gate = make(chan struct{})
	c := script("head -c 100000 /dev/zero > big; echo hi")
	c.OutputPaths = []string{"big"}
	first, second := r.task(c, nil, nil), r.task(script("true"), nil, nil)
	freed, done := make(chan struct{}), make(chan error)
	go func() {
		_, err := r.a.Run(t.Context(), 0, first, func() {}, func() { close(freed) })
		done <- err
	}()
	<-freed
	r.result(second)
	select {
	case <-done:
		t.Error("it answered before its outputs were stored")
	default:
	}
	close(r.store.gate)
	if err := <-done; err != nil {
		t.Error(err)
	}
}
