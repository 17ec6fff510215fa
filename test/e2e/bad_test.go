package e2e

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	bspb "google.golang.org/genproto/googleapis/bytestream"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/remex-build/terraform-provider-remex/test/reapi"
)

func dial(t *testing.T, c *remexCluster) *reapi.Client {
	t.Helper()
	client, err := reapi.Dial(c.addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

// An act is an action put together by hand.
type act struct {
	command *repb.Command
	root    *repb.Directory
	blobs   [][]byte // further ones to upload
	timeout time.Duration
	omit    []string // of "command", "root": not uploaded
}

func shell(script string) act {
	return act{command: &repb.Command{Arguments: []string{"/bin/sh", "-c", script}}}
}

// submit uploads the action and executes it, whatever comes of it.
func (a act) submit(ctx context.Context, c *reapi.Client) (*repb.ExecuteResponse, *repb.Digest, error) {
	if a.root == nil {
		a.root = &repb.Directory{}
	}
	command, commandDigest := reapi.Message(a.command)
	root, rootDigest := reapi.Message(a.root)
	action := &repb.Action{CommandDigest: commandDigest, InputRootDigest: rootDigest, Salt: []byte(rand.Text())}
	if a.timeout > 0 {
		action.Timeout = durationpb.New(a.timeout)
	}
	data, digest := reapi.Message(action)
	blobs := append(slices.Clone(a.blobs), data)
	if !slices.Contains(a.omit, "command") {
		blobs = append(blobs, command)
	}
	if !slices.Contains(a.omit, "root") {
		blobs = append(blobs, root)
	}
	if err := c.Upload(ctx, blobs); err != nil {
		return nil, digest, err
	}
	resp, err := execute(ctx, c, &repb.ExecuteRequest{ActionDigest: digest})
	return resp, digest, err
}

// execute waits for the response. Its status counts as the call's error.
func execute(ctx context.Context, c *reapi.Client, req *repb.ExecuteRequest) (*repb.ExecuteResponse, error) {
	stream, err := c.Exec.Execute(ctx, req)
	if err != nil {
		return nil, err
	}
	for {
		op, err := stream.Recv()
		if err != nil {
			return nil, err
		}
		if !op.Done {
			continue
		}
		var resp repb.ExecuteResponse
		if err := op.GetResponse().UnmarshalTo(&resp); err != nil {
			return nil, fmt.Errorf("operation %v: %w", op, err)
		}
		return &resp, status.ErrorProto(resp.Status)
	}
}

// missing are the subjects of the MISSING violations of an error, which must
// have no other detail that would make Bazel give up.
func missing(t *testing.T, err error) []string {
	t.Helper()
	var subjects []string
	for _, detail := range status.Convert(err).Details() {
		f, ok := detail.(*errdetails.PreconditionFailure)
		if !ok {
			t.Errorf("a detail that Bazel does not retry on: %T", detail)
			continue
		}
		for _, v := range f.Violations {
			if v.Type != "MISSING" {
				t.Errorf("violation of type %q", v.Type)
			}
			subjects = append(subjects, v.Subject)
		}
	}
	slices.Sort(subjects)
	return subjects
}

func subject(d *repb.Digest) string { return fmt.Sprintf("blobs/%s/%d", d.Hash, d.SizeBytes) }

func wantCode(t *testing.T, err error, want codes.Code, mention string) {
	t.Helper()
	if status.Code(err) != want || !strings.Contains(status.Convert(err).Message(), mention) {
		t.Errorf("got %v; want %s that mentions %q", err, want, mention)
	}
}

// serves checks that the next build is served correctly.
func serves(t *testing.T, c *reapi.Client) {
	t.Helper()
	resp, _, err := shell("echo fine").submit(t.Context(), c)
	if err != nil || resp.Result.GetExitCode() != 0 {
		t.Fatalf("the next action: %v, %v", resp, err)
	}
}

func TestBadUploads(t *testing.T) {
	c := dial(t, shared(t))
	ctx := t.Context()
	good := []byte("good " + rand.Text())
	d := reapi.Name(good)

	for name, wrong := range map[string]*repb.Digest{
		"hash of other bytes": reapi.Name([]byte("other")),
		"size too large":      {Hash: d.Hash, SizeBytes: d.SizeBytes + 1},
		"size too small":      {Hash: d.Hash, SizeBytes: d.SizeBytes - 1},
		"negative size":       {Hash: d.Hash, SizeBytes: -1},
		"short hash":          {Hash: d.Hash[2:], SizeBytes: d.SizeBytes},
		"upper-case hash":     {Hash: strings.ToUpper(d.Hash), SizeBytes: d.SizeBytes},
		"a path for a hash":   {Hash: "../../../../etc/passwd" + d.Hash[22:], SizeBytes: d.SizeBytes},
	} {
		t.Run("batch/"+name, func(t *testing.T) {
			resp, err := c.CAS.BatchUpdateBlobs(ctx, &repb.BatchUpdateBlobsRequest{Requests: []*repb.BatchUpdateBlobsRequest_Request{{Digest: wrong, Data: good}}})
			if err == nil {
				err = status.ErrorProto(resp.Responses[0].Status)
			}
			wantCode(t, err, codes.InvalidArgument, "")
		})
		t.Run("stream/"+name, func(t *testing.T) {
			_, err := write(ctx, c, fmt.Sprintf("uploads/%s/blobs/%s/%d", uuid(), wrong.Hash, wrong.SizeBytes), good)
			wantCode(t, err, codes.InvalidArgument, "")
		})
	}
	gone, err := c.Missing(ctx, []*repb.Digest{d})
	if err != nil || len(gone) != 1 {
		t.Errorf("after bad uploads only: missing %v, %v", gone, err)
	}
	large := make([]byte, 3<<20)
	_, _ = rand.Read(large)
	ld := reapi.Name(large)
	large[len(large)-1] ^= 1
	_, err = write(ctx, c, fmt.Sprintf("uploads/%s/blobs/%s/%d", uuid(), ld.Hash, ld.SizeBytes), large)
	wantCode(t, err, codes.InvalidArgument, "")
	large[len(large)-1] ^= 1
	if err := c.Write(ctx, large); err != nil {
		t.Errorf("the right bytes after wrong ones: %v", err)
	}
	if n, err := c.Read(ctx, ld); err != nil || n != int64(len(large)) {
		t.Errorf("read back %d bytes, %v", n, err)
	}
	serves(t, c)
}

// write sends data under any resource name, in frames of 1 MiB.
func write(ctx context.Context, c *reapi.Client, resource string, data []byte) (int64, error) {
	stream, err := c.BS.Write(ctx)
	if err != nil {
		return 0, err
	}
	for off := 0; ; {
		n := min(len(data)-off, 1<<20)
		last := off+n == len(data)
		err := stream.Send(&bspb.WriteRequest{ResourceName: resource, WriteOffset: int64(off), Data: data[off : off+n], FinishWrite: last})
		off += n
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		if err != nil || last {
			break
		}
	}
	resp, err := stream.CloseAndRecv()
	return resp.GetCommittedSize(), err
}

func uuid() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b)
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func TestNotAnnounced(t *testing.T) {
	c := dial(t, shared(t))
	ctx := t.Context()
	d := reapi.Name([]byte("x"))
	_, err := c.CAS.SplitBlob(ctx, &repb.SplitBlobRequest{BlobDigest: d})
	wantCode(t, err, codes.Unimplemented, "SplitBlob")
	_, err = c.CAS.SpliceBlob(ctx, &repb.SpliceBlobRequest{BlobDigest: d})
	wantCode(t, err, codes.Unimplemented, "SpliceBlob")
	_, err = c.CAS.FindMissingBlobs(ctx, &repb.FindMissingBlobsRequest{BlobDigests: []*repb.Digest{{Hash: d.Hash[:40], SizeBytes: 1}}, DigestFunction: repb.DigestFunction_SHA1})
	wantCode(t, err, codes.InvalidArgument, "digest_function")
	stream, err := c.BS.Read(ctx, &bspb.ReadRequest{ResourceName: fmt.Sprintf("compressed-blobs/zstd/%s/%d", d.Hash, d.SizeBytes)})
	if err == nil {
		_, err = stream.Recv()
	}
	if code := status.Code(err); (code != codes.Unimplemented && code != codes.InvalidArgument) || !strings.Contains(err.Error(), "compress") {
		t.Errorf("compressed-blobs: %v", err)
	}
}

func TestBadActions(t *testing.T) {
	c := dial(t, shared(t))
	file := []byte("a file")
	node := func(name string) *repb.Directory {
		return &repb.Directory{Files: []*repb.FileNode{{Name: name, Digest: reapi.Name(file)}}}
	}
	out := func(paths ...string) *repb.Command {
		return &repb.Command{Arguments: []string{"/bin/true"}, OutputPaths: paths}
	}
	true_ := &repb.Command{Arguments: []string{"/bin/true"}}
	for name, a := range map[string]struct {
		act
		code    codes.Code
		mention string
	}{
		"input named ..":            {act{command: true_, root: node(".."), blobs: [][]byte{file}}, codes.InvalidArgument, ".."},
		"input with a slash":        {act{command: true_, root: node("a/b"), blobs: [][]byte{file}}, codes.InvalidArgument, "a/b"},
		"absolute input":            {act{command: true_, root: node("/etc/passwd"), blobs: [][]byte{file}}, codes.InvalidArgument, "/etc/passwd"},
		"input with NUL":            {act{command: true_, root: node("a\x00b"), blobs: [][]byte{file}}, codes.InvalidArgument, `a\x00b`},
		"nameless input":            {act{command: true_, root: node(""), blobs: [][]byte{file}}, codes.InvalidArgument, ""},
		"output above":              {act{command: out("../escaped")}, codes.InvalidArgument, "../escaped"},
		"absolute output":           {act{command: out("/tmp/escaped")}, codes.InvalidArgument, "/tmp/escaped"},
		"output with NUL":           {act{command: out("a\x00b")}, codes.InvalidArgument, ""},
		"working directory above":   {act{command: &repb.Command{Arguments: []string{"/bin/true"}, WorkingDirectory: "../.."}}, codes.InvalidArgument, "../.."},
		"absolute working dir":      {act{command: &repb.Command{Arguments: []string{"/bin/true"}, WorkingDirectory: "/tmp"}}, codes.InvalidArgument, "/tmp"},
		"a command without argv":    {act{command: &repb.Command{}}, codes.InvalidArgument, "argument"},
		"a command that is nowhere": {act{command: &repb.Command{Arguments: []string{"no-such-command-anywhere"}}}, codes.InvalidArgument, "no-such-command-anywhere"},
		"a path that is nowhere":    {act{command: &repb.Command{Arguments: []string{"/no/such/command"}}}, codes.InvalidArgument, "/no/such/command"},
		"a platform nobody has": {
			act{command: &repb.Command{Arguments: []string{"/bin/true"}, Platform: &repb.Platform{Properties: []*repb.Platform_Property{{Name: "OSFamily", Value: "plan9"}}}}},
			codes.FailedPrecondition, "OSFamily",
		},
		"a container image": {
			act{command: &repb.Command{Arguments: []string{"/bin/true"}, Platform: &repb.Platform{Properties: []*repb.Platform_Property{{Name: "container-image", Value: "docker://debian"}}}}},
			codes.FailedPrecondition, "container-image",
		},
		"a timeout above the server's": {act{command: true_, timeout: 1000 * time.Hour}, codes.InvalidArgument, "timeout"},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Second)
			defer cancel()
			_, _, err := a.submit(ctx, c)
			wantCode(t, err, a.code, a.mention)
			for _, detail := range status.Convert(err).Details() {
				if f, ok := detail.(*errdetails.PreconditionFailure); ok {
					t.Errorf("Bazel would upload and retry for %v", f)
				}
			}
		})
	}
	serves(t, c)
}

func TestMissingInputsAreAllListed(t *testing.T) {
	c := dial(t, shared(t))
	ctx := t.Context()
	here, gone1, gone2 := []byte("here "+rand.Text()), reapi.Name([]byte(rand.Text())), reapi.Name([]byte(rand.Text()))
	_, goneDir := reapi.Message(&repb.Directory{Files: []*repb.FileNode{{Name: rand.Text(), Digest: gone1}}})
	sub, subDigest := reapi.Message(&repb.Directory{Files: []*repb.FileNode{{Name: "gone2", Digest: gone2}}})
	a := shell("true")
	a.blobs = [][]byte{here, sub}
	a.root = &repb.Directory{
		Files:       []*repb.FileNode{{Name: "gone1", Digest: gone1}, {Name: "here", Digest: reapi.Name(here)}},
		Directories: []*repb.DirectoryNode{{Name: "gone-dir", Digest: goneDir}, {Name: "sub", Digest: subDigest}},
	}
	_, _, err := a.submit(ctx, c)
	wantCode(t, err, codes.FailedPrecondition, "")
	want := []string{subject(gone1), subject(gone2), subject(goneDir)}
	slices.Sort(want)
	if got := missing(t, err); !slices.Equal(got, want) {
		t.Errorf("listed %v, want %v", got, want)
	}

	_, commandDigest := reapi.Message(&repb.Command{Arguments: []string{rand.Text()}})
	_, rootDigest := reapi.Message(&repb.Directory{Symlinks: []*repb.SymlinkNode{{Name: rand.Text(), Target: "x"}}})
	action, digest := reapi.Message(&repb.Action{CommandDigest: commandDigest, InputRootDigest: rootDigest})
	_, err = execute(ctx, c, &repb.ExecuteRequest{ActionDigest: digest})
	wantCode(t, err, codes.FailedPrecondition, "")
	if got := missing(t, err); !slices.Equal(got, []string{subject(digest)}) {
		t.Errorf("without its action: %v", got)
	}
	if err := c.Upload(ctx, [][]byte{action}); err != nil {
		t.Fatal(err)
	}
	_, err = execute(ctx, c, &repb.ExecuteRequest{ActionDigest: digest})
	wantCode(t, err, codes.FailedPrecondition, "")
	want = []string{subject(commandDigest), subject(rootDigest)}
	slices.Sort(want)
	if got := missing(t, err); !slices.Equal(got, want) {
		t.Errorf("listed %v, want %v", got, want)
	}
	serves(t, c)
}

// A directory cannot hold itself by its digest, but bytes can claim anything.
func TestADirectoryThatIsNone(t *testing.T) {
	c := dial(t, shared(t))
	junk := []byte("this is no Directory message \xff\xff\xff\xff")
	a := shell("true")
	a.blobs = [][]byte{junk}
	a.root = &repb.Directory{Directories: []*repb.DirectoryNode{{Name: "junk", Digest: reapi.Name(junk)}}}
	_, _, err := a.submit(t.Context(), c)
	wantCode(t, err, codes.InvalidArgument, reapi.Name(junk).Hash)
	deep := &repb.Directory{}
	a.blobs = nil
	for range 2000 {
		b, d := reapi.Message(deep)
		a.blobs = append(a.blobs, b)
		deep = &repb.Directory{Directories: []*repb.DirectoryNode{{Name: "d", Digest: d}}}
	}
	a.root = deep
	resp, _, err := a.submit(t.Context(), c)
	if err == nil && resp.Result.ExitCode == 0 {
		t.Log("a tree of 2,000 levels is run")
	} else if status.Code(err) != codes.InvalidArgument {
		t.Errorf("a tree of 2,000 levels: %v", err)
	}
	serves(t, c)
}

func TestActionThatFloodsItsOutput(t *testing.T) {
	cluster := shared(t)
	c := dial(t, cluster)
	resp, digest, err := shell("head -c 1000000000 /dev/zero; exit 0").submit(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if resp.Result.ExitCode != 0 {
		t.Errorf("exit code %d", resp.Result.ExitCode)
	}
	size := resp.Result.StdoutDigest.GetSizeBytes()
	if size < 64<<20 || size > 65<<20 {
		t.Errorf("stdout holds %d bytes", size)
	}
	_, err = c.AC.GetActionResult(t.Context(), &repb.GetActionResultRequest{ActionDigest: digest})
	wantCode(t, err, codes.NotFound, "")
	serves(t, c)
}

func TestActionThatLeavesProcesses(t *testing.T) {
	c := dial(t, shared(t))
	const mark = "86399.25" // seconds that nobody else sleeps
	start := time.Now()
	resp, _, err := shell("sleep "+mark+" & (setsid sleep "+mark+" >/dev/null 2>&1 &) ; nohup sleep "+mark+" >/dev/null 2>&1 & echo left").submit(t.Context(), c)
	if err != nil || resp.Result.ExitCode != 0 {
		t.Fatalf("%v, %v", resp, err)
	}
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("it took %s: somebody waited for what was left", took)
	}
	eventually(t, "what the action left is gone", 5*time.Second, func() bool { return len(running(t, `sleep `+mark)) == 0 })
	serves(t, c)
}

func TestActionTimesOut(t *testing.T) {
	c := dial(t, shared(t))
	a := shell("echo so far; trap 'echo late > out; exit 1' TERM; sleep 60 & wait")
	a.command.OutputPaths = []string{"out"}
	a.timeout = time.Second
	resp, digest, err := a.submit(t.Context(), c)
	wantCode(t, err, codes.DeadlineExceeded, "execution timeout exceeded")
	if resp == nil || len(resp.Result.GetOutputFiles()) != 1 {
		t.Fatalf("what the action wrote in its grace is not there: %v", resp)
	}
	_, err = c.AC.GetActionResult(t.Context(), &repb.GetActionResultRequest{ActionDigest: digest})
	wantCode(t, err, codes.NotFound, "")
	serves(t, c)
}

// A client that goes away leaves nothing behind: its queued action is dropped
// and its upload forgotten, and the executors serve others.
func TestClientVanishes(t *testing.T) {
	cluster := shared(t)
	c := dial(t, cluster)
	const mark = "86399.75"

	t.Run("in the middle of an upload", func(t *testing.T) {
		blob := make([]byte, 2<<20)
		_, _ = rand.Read(blob)
		d := reapi.Name(blob)
		res := fmt.Sprintf("uploads/%s/blobs/%s/%d", uuid(), d.Hash, d.SizeBytes)
		// Whoever resumes goes on from there, through another connection too.
		again := dial(t, cluster)
		var st *bspb.QueryWriteStatusResponse
		eventually(t, "some of what a vanished client sent is kept", 30*time.Second, func() bool {
			ctx, vanish := context.WithCancel(t.Context())
			defer vanish()
			stream, err := c.BS.Write(ctx)
			if err != nil {
				t.Fatal(err)
			}
			for off := 0; off < 1<<20; off += 64 << 10 {
				if err := stream.Send(&bspb.WriteRequest{ResourceName: res, WriteOffset: int64(off), Data: blob[off : off+64<<10]}); err != nil {
					t.Fatal(err)
				}
			}
			vanish()
			st, err = again.BS.QueryWriteStatus(t.Context(), &bspb.QueryWriteStatusRequest{ResourceName: res})
			if err != nil {
				t.Fatal(err)
			}
			return st.CommittedSize > 0
		})
		resumed, err := again.BS.Write(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := resumed.Send(&bspb.WriteRequest{ResourceName: res, WriteOffset: st.CommittedSize, Data: blob[st.CommittedSize:], FinishWrite: true}); err != nil {
			t.Fatal(err)
		}
		if resp, err := resumed.CloseAndRecv(); err != nil || resp.CommittedSize != d.SizeBytes {
			t.Fatalf("resumed upload: %v, %v", resp, err)
		}
		if n, err := again.Read(t.Context(), d); err != nil || n != d.SizeBytes {
			t.Errorf("read %d bytes, %v", n, err)
		}
	})
	t.Run("while its action runs", func(t *testing.T) {
		ctx, vanish := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			_, _, err := shell("sleep "+mark).submit(ctx, c)
			done <- err
		}()
		eventually(t, "the action runs", 20*time.Second, func() bool { return len(running(t, `^sleep `+mark)) == 1 })
		vanish()
		<-done
		// It goes on for a while, in case the client comes back, and then ends.
		if len(running(t, `^sleep `+mark)) != 1 {
			t.Error("the action was killed at once")
		}
		eventually(t, "the action is killed", 80*time.Second, func() bool { return len(running(t, `^sleep `+mark)) == 0 })
	})
	serves(t, c)
}

// A disk that is full refuses; others take what it cannot.
func TestFullDisk(t *testing.T) {
	cluster := fresh(t, "--schedulers=1", "--workers=3", "--executors=1", "--disk-size=64MiB")
	c := dial(t, cluster)
	ctx := t.Context()
	var stored []*repb.Digest
	var err error
	for range 400 {
		blob := make([]byte, 1<<20)
		_, _ = rand.Read(blob)
		if err = c.Write(ctx, blob); err != nil {
			break
		}
		stored = append(stored, reapi.Name(blob))
	}
	wantCode(t, err, codes.ResourceExhausted, "")
	if len(stored) < 50 {
		t.Errorf("only %d MiB fit on three disks of 64 MiB", len(stored))
	}
	// Nothing that was acknowledged is lost: all of it is younger than 3 h.
	gone, err := c.Missing(ctx, stored)
	if err != nil || len(gone) > 0 {
		t.Errorf("%d of %d acknowledged blobs are missing, %v", len(gone), len(stored), err)
	}
	for _, d := range stored[:5] {
		if n, err := c.Read(ctx, d); err != nil || n != d.SizeBytes {
			t.Errorf("read %d bytes, %v", n, err)
		}
	}
}

// What a client says of an action's results is handed to other clients: it
// must not lead them out of their output trees, nor lie about the bytes.
func TestBadActionResults(t *testing.T) {
	c := dial(t, shared(t))
	there := []byte("there " + rand.Text())
	if err := c.Upload(t.Context(), [][]byte{there}); err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]*repb.OutputFile{
		"above":          {Path: "../x", Digest: reapi.Name(there)},
		"above further":  {Path: "a/../../x", Digest: reapi.Name(there)},
		"absolute":       {Path: "/etc/x", Digest: reapi.Name(there)},
		"NUL":            {Path: "a\x00b", Digest: reapi.Name(there)},
		"nameless":       {Digest: reapi.Name(there)},
		"other contents": {Path: "x", Digest: reapi.Name(there), Contents: []byte("other")},
		"a short hash":   {Path: "x", Digest: &repb.Digest{Hash: "abc", SizeBytes: 1}},
	} {
		action := reapi.Name([]byte(rand.Text()))
		_, err := c.AC.UpdateActionResult(t.Context(), &repb.UpdateActionResultRequest{ActionDigest: action, ActionResult: &repb.ActionResult{OutputFiles: []*repb.OutputFile{f}}})
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
		_, err = c.AC.GetActionResult(t.Context(), &repb.GetActionResultRequest{ActionDigest: action})
		if status.Code(err) != codes.NotFound {
			t.Errorf("%s: then found: %v", name, err)
		}
	}
	inline := []byte("inline " + rand.Text())
	action := reapi.Name([]byte(rand.Text()))
	_, err := c.AC.UpdateActionResult(t.Context(), &repb.UpdateActionResultRequest{ActionDigest: action, ActionResult: &repb.ActionResult{
		OutputFiles: []*repb.OutputFile{{Path: "x", Digest: reapi.Name(inline), Contents: inline}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.AC.GetActionResult(t.Context(), &repb.GetActionResultRequest{ActionDigest: action}); err != nil {
		t.Errorf("a result with inline contents only: %v", err)
	}
	huge := fmt.Sprintf("uploads/%s/blobs/%s/%d", uuid(), reapi.Name(there).Hash, int64(1<<63-1))
	_, err = write(t.Context(), c, huge, there)
	if code := status.Code(err); code != codes.ResourceExhausted && code != codes.InvalidArgument || strings.Contains(err.Error(), "-9") {
		t.Errorf("a blob of 8 EiB: %v", err)
	}
}
