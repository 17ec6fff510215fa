package frontend_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/remex-build/terraform-provider-remex/daemon/actioncache"
	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

// plant puts a result into the action cache of the instance "i".
func (w *world) plant(t *testing.T, action digest.Digest, r *repb.ActionResult) {
	t.Helper()
	b, err := proto.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.actions.Put(t.Context(), actioncache.Key{Instance: "i", Action: action}, b); err != nil {
		t.Fatal(err)
	}
}

func (w *world) result(t *testing.T, action digest.Digest) (*repb.ActionResult, error) {
	t.Helper()
	return w.ac().GetActionResult(t.Context(), &repb.GetActionResultRequest{InstanceName: "i", ActionDigest: wire(action)})
}

func TestGetActionResult(t *testing.T) {
	w := start(t)
	action := sha("action")
	_, err := w.result(t, action)
	wantCode(t, err, codes.NotFound)

	w.plant(t, action, &repb.ActionResult{})
	if _, err := w.result(t, action); err != nil {
		t.Error("a result without outputs:", err)
	}
	_, err = w.ac().GetActionResult(t.Context(), &repb.GetActionResultRequest{ActionDigest: wire(action)})
	wantCode(t, err, codes.NotFound) // of another instance

	_, err = w.ac().GetActionResult(t.Context(), &repb.GetActionResultRequest{})
	wantInvalid(t, err, "action_digest")
	_, err = w.ac().GetActionResult(t.Context(), &repb.GetActionResultRequest{ActionDigest: wire(action), DigestFunction: repb.DigestFunction_MD5})
	wantInvalid(t, err, "digest_function")

	w.actions.Fail(fmt.Errorf("ask: %w", blob.ErrUnavailable))
	_, err = w.result(t, action)
	wantCode(t, err, codes.Unavailable)
}

func TestAHitNeedsEverythingItNames(t *testing.T) {
	w := start(t)
	action := sha("action")
	inTree := w.store.Add([]byte("in tree"))
	child := &repb.Directory{Files: []*repb.FileNode{{Name: "f", Digest: wire(inTree)}}}
	childDigest := w.add(t, child)
	rootDir := &repb.Directory{Directories: []*repb.DirectoryNode{{Name: "d", Digest: childDigest}}}
	rootDigest := w.add(t, rootDir)
	tree := w.add(t, &repb.Tree{Root: rootDir, Children: []*repb.Directory{child}})
	file, out, errs := w.store.Add([]byte("file")), w.store.Add([]byte("out")), w.store.Add([]byte("err"))

	full := func() *repb.ActionResult {
		return &repb.ActionResult{
			OutputFiles:       []*repb.OutputFile{{Path: "f", Digest: wire(file)}},
			OutputDirectories: []*repb.OutputDirectory{{Path: "d", TreeDigest: tree}},
			StdoutDigest:      wire(out), StderrDigest: wire(errs),
		}
	}
	hierarchy := full()
	hierarchy.OutputDirectories[0] = &repb.OutputDirectory{Path: "d", RootDirectoryDigest: rootDigest}
	both := full()
	both.OutputDirectories[0].RootDirectoryDigest = rootDigest

	parse := func(p *repb.Digest) digest.Digest {
		d, err := digest.Parse(digest.SHA256, p.Hash, p.SizeBytes)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	for name, c := range map[string]struct {
		r     *repb.ActionResult
		needs []digest.Digest
	}{
		"tree":      {full(), []digest.Digest{file, out, errs, inTree, parse(tree)}},
		"hierarchy": {hierarchy, []digest.Digest{file, out, errs, inTree, parse(rootDigest), parse(childDigest)}},
		"both":      {both, []digest.Digest{file, out, errs, inTree, parse(tree), parse(rootDigest), parse(childDigest)}},
	} {
		t.Run(name, func(t *testing.T) {
			w.plant(t, action, c.r)
			before := w.store.Calls("Missing")
			got, err := w.result(t, action)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.r, got, protocmp.Transform()); diff != "" {
				t.Error(diff)
			}
			if n := w.store.Calls("Missing") - before; n != 1 {
				t.Errorf("%d questions for what is missing, want one", n)
			}
			for _, d := range c.needs {
				kept, err := w.cas().BatchReadBlobs(t.Context(), &repb.BatchReadBlobsRequest{Digests: []*repb.Digest{wire(d)}})
				if err != nil {
					t.Fatal(err)
				}
				w.store.Drop(d)
				_, err = w.result(t, action)
				wantCode(t, err, codes.NotFound)
				w.store.Add(kept.Responses[0].Data)
			}
			w.store.Fail(blob.ErrUnavailable)
			_, err = w.result(t, action)
			wantCode(t, err, codes.Unavailable)
			w.store.Fail(nil)
		})
	}
	for name, r := range map[string]*repb.ActionResult{
		"no tree":          {OutputDirectories: []*repb.OutputDirectory{{Path: "d", TreeDigest: wire(w.store.Add([]byte("\xff\xff")))}}},
		"no directory":     {OutputDirectories: []*repb.OutputDirectory{{Path: "d", RootDirectoryDigest: wire(w.store.Add([]byte("\xff\xff")))}}},
		"bad digest":       {StdoutDigest: &repb.Digest{Hash: "abc"}},
		"trees too large":  {OutputDirectories: []*repb.OutputDirectory{{Path: "d", TreeDigest: &repb.Digest{Hash: tree.Hash, SizeBytes: 1 << 40}}}},
		"no digest at all": {OutputFiles: []*repb.OutputFile{{Path: "f"}}},
	} {
		t.Run(name, func(t *testing.T) {
			w.plant(t, action, r)
			_, err := w.result(t, action)
			wantCode(t, err, codes.NotFound)
		})
	}
}

func TestInlining(t *testing.T) {
	w := start(t)
	action := sha("action")
	out, errs := w.store.Add([]byte("out")), w.store.Add([]byte("err"))
	a, b := w.store.Add([]byte("a")), w.store.Add([]byte("b"))
	w.plant(t, action, &repb.ActionResult{
		StdoutDigest: wire(out), StderrDigest: wire(errs), StderrRaw: []byte("err"),
		OutputFiles: []*repb.OutputFile{{Path: "a", Digest: wire(a)}, {Path: "b", Digest: wire(b), Contents: []byte("b")}},
	})
	r, err := w.result(t, action)
	if err != nil {
		t.Fatal(err)
	}
	if r.StdoutRaw != nil || r.StderrRaw != nil || r.OutputFiles[0].Contents != nil || r.OutputFiles[1].Contents != nil {
		t.Errorf("inlined unasked: %v", r)
	}
	r, err = w.ac().GetActionResult(t.Context(), &repb.GetActionResultRequest{
		InstanceName: "i", ActionDigest: wire(action), InlineStdout: true, InlineStderr: true, InlineOutputFiles: []string{"a", "nothing"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if string(r.StdoutRaw) != "out" || string(r.StderrRaw) != "err" || string(r.OutputFiles[0].Contents) != "a" || r.OutputFiles[1].Contents != nil {
		t.Errorf("inlined otherwise than asked: %v", r)
	}

	t.Run("as much as fits", func(t *testing.T) {
		large, huge := w.store.Add(bytes.Repeat([]byte("x"), 3<<20)), w.store.Add(bytes.Repeat([]byte("y"), 5<<20))
		w.plant(t, action, &repb.ActionResult{
			StdoutDigest: wire(huge), StderrDigest: wire(large),
			OutputFiles: []*repb.OutputFile{{Path: "a", Digest: wire(large)}, {Path: "b", Digest: wire(b)}},
		})
		r, err := w.ac().GetActionResult(t.Context(), &repb.GetActionResultRequest{
			InstanceName: "i", ActionDigest: wire(action), InlineStdout: true, InlineStderr: true, InlineOutputFiles: []string{"a", "b"},
		})
		if err != nil {
			t.Fatal(err)
		}
		if len(r.StdoutRaw) != 0 || len(r.StderrRaw) != 3<<20 || len(r.OutputFiles[0].Contents) != 0 || string(r.OutputFiles[1].Contents) != "b" {
			t.Errorf("inlined %d, %d, %d, %d bytes", len(r.StdoutRaw), len(r.StderrRaw), len(r.OutputFiles[0].Contents), len(r.OutputFiles[1].Contents))
		}
	})
	t.Run("a result larger than a message is a miss", func(t *testing.T) {
		r := &repb.ActionResult{}
		for i := range 5_000 {
			r.OutputFiles = append(r.OutputFiles, &repb.OutputFile{Path: fmt.Sprintf("%01000d", i), Digest: wire(a)})
		}
		w.plant(t, action, r)
		_, err := w.result(t, action)
		wantCode(t, err, codes.NotFound)
	})
}

func TestUpdateActionResult(t *testing.T) {
	w := start(t)
	action, file := sha("action"), w.store.Add([]byte("file"))
	update := func(r *repb.ActionResult) (*repb.ActionResult, error) {
		return w.ac().UpdateActionResult(t.Context(), &repb.UpdateActionResultRequest{
			InstanceName: "i", ActionDigest: wire(action), ActionResult: r,
		})
	}
	if _, err := update(&repb.ActionResult{
		OutputFiles: []*repb.OutputFile{{Path: "f", Digest: wire(file), Contents: []byte("file")}}, StdoutRaw: []byte("hello"),
	}); err != nil {
		t.Fatal(err)
	}
	got, err := w.result(t, action)
	if err != nil {
		t.Fatal(err)
	}
	want := &repb.ActionResult{
		OutputFiles: []*repb.OutputFile{{Path: "f", Digest: wire(file)}}, StdoutDigest: wire(sha("hello")),
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}

	good := wire(file)
	for field, r := range map[string]*repb.ActionResult{
		"action_result":                                             nil,
		"action_result.exit_code":                                   {ExitCode: 1},
		"action_result.output_files[1].digest":                      {OutputFiles: []*repb.OutputFile{{Path: "a", Digest: good}, {Path: "b"}}},
		"action_result.output_files[0].path":                        {OutputFiles: []*repb.OutputFile{{Path: "/etc/passwd", Digest: good}}},
		"action_result.output_directories[0]":                       {OutputDirectories: []*repb.OutputDirectory{{Path: "d"}}},
		"action_result.output_directories[0].tree_digest":           {OutputDirectories: []*repb.OutputDirectory{{Path: "d", TreeDigest: &repb.Digest{Hash: "x"}}}},
		"action_result.output_directories[0].path":                  {OutputDirectories: []*repb.OutputDirectory{{Path: "d\x00", TreeDigest: good}}},
		"action_result.stdout_digest":                               {StdoutDigest: &repb.Digest{Hash: strings.Repeat("a", 64), SizeBytes: -1}},
		"action_result.stderr_digest":                               {StderrDigest: &repb.Digest{}},
		"action_result.output_symlinks.path":                        {OutputSymlinks: []*repb.OutputSymlink{{Target: "x"}}},
		"action_result.output_directories[0].root_directory_digest": {OutputDirectories: []*repb.OutputDirectory{{Path: "d", RootDirectoryDigest: &repb.Digest{Hash: "x"}}}},
	} {
		t.Run(field, func(t *testing.T) {
			_, err := update(r)
			wantInvalid(t, err, field)
		})
	}
	w.actions.Fail(blob.ErrFull)
	_, err = update(&repb.ActionResult{})
	wantCode(t, err, codes.ResourceExhausted)
}
