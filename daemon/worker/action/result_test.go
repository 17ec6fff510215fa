package action

import (
	"strings"
	"testing"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

const makeTree = `mkdir -p d/x/same d/y/same d/empty; echo 1 > d/x/same/f; echo 1 > d/y/same/f; echo 2 > d/y/g; chmod +x d/y/g; ln -s ../y/g d/x/l; echo 3 > d/z`

func TestOutputDirectory(t *testing.T) {
	r := newRig(t, nil)
	c := script(makeTree)
	c.OutputPaths = []string{"d"}
	c.OutputDirectoryFormat = repb.Command_TREE_AND_DIRECTORY
	d := r.result(r.task(c, nil, nil)).GetOutputDirectories()[0]
	var tree repb.Tree
	if err := proto.Unmarshal([]byte(r.content(d.GetTreeDigest())), &tree); err != nil {
		t.Fatal(err)
	}
	if !d.GetIsTopologicallySorted() || len(tree.GetChildren()) != 4 { // x, y, same once, empty
		t.Fatalf("tree %v", &tree)
	}
	place := map[string]int{}
	all := append([]*repb.Directory{tree.GetRoot()}, tree.GetChildren()...)
	for i, dir := range all {
		data, err := proto.MarshalOptions{Deterministic: true}.Marshal(dir)
		if err != nil {
			t.Fatal(err)
		}
		name := digest.Of(digest.SHA256, data).Hash()
		if _, twice := place[name]; twice {
			t.Error("a directory is there twice")
		}
		place[name] = i
		if r.content(toProto(digest.Of(digest.SHA256, data))) != string(data) {
			t.Error("a directory is not stored")
		}
	}
	for i, dir := range all {
		for _, s := range dir.GetDirectories() {
			if j, ok := place[s.GetDigest().GetHash()]; !ok || j <= i {
				t.Errorf("%s stands at %d, below its parent at %d", s.GetName(), j, i)
			}
		}
	}
	if place[d.GetRootDirectoryDigest().GetHash()] != 0 || d.GetRootDirectoryDigest() == nil {
		t.Error("root_directory_digest is not the root's")
	}
	again := r.result(r.task(c, nil, func(a *repb.Action) { a.Salt = []byte("again") }))
	if diff := cmp.Diff(d, again.GetOutputDirectories()[0], protocmp.Transform()); diff != "" {
		t.Errorf("not deterministic: %s", diff)
	}
}

func TestOutputDirectoryFormats(t *testing.T) {
	r := newRig(t, nil)
	for format, want := range map[repb.Command_OutputDirectoryFormat][2]bool{
		repb.Command_TREE_ONLY:          {true, false},
		repb.Command_DIRECTORY_ONLY:     {false, true},
		repb.Command_TREE_AND_DIRECTORY: {true, true},
		7:                               {true, false}, // unknown: as TREE_ONLY
	} {
		c := script("mkdir empty")
		c.OutputPaths = []string{"empty"}
		c.OutputDirectoryFormat = format
		d := r.result(r.task(c, nil, nil)).GetOutputDirectories()[0]
		if got := [2]bool{d.TreeDigest != nil, d.RootDirectoryDigest != nil}; got != want {
			t.Errorf("%v: tree and directory are %v", format, got)
		}
		if want[0] && r.content(d.GetTreeDigest()) != "\x0a\x00" {
			t.Errorf("%v: an empty directory's tree is %q, not one with a root", format, r.content(d.GetTreeDigest()))
		}
	}
}

func TestListsOfOldClients(t *testing.T) {
	r := newRig(t, nil)
	for _, c := range []struct {
		name        string
		script      string
		files, dirs []string
		code        codes.Code
		want        *repb.ActionResult
	}{
		{name: "a file and a directory", script: "echo f > f; mkdir d", files: []string{"f"}, dirs: []string{"d"}, want: &repb.ActionResult{
			OutputFiles:       []*repb.OutputFile{{Path: "f", Digest: r.blob("f\n")}},
			OutputDirectories: []*repb.OutputDirectory{{Path: "d", TreeDigest: r.blob("\x0a\x00"), IsTopologicallySorted: true}},
		}},
		{name: "missing ones", files: []string{"f"}, dirs: []string{"d"}, script: "true", want: &repb.ActionResult{}},
		{name: "symlinks", script: "> f; mkdir d; ln -s f fl; ln -s d dl; ln -s nowhere n", files: []string{"fl", "n"}, dirs: []string{"dl"}, want: &repb.ActionResult{
			OutputFileSymlinks:      []*repb.OutputSymlink{{Path: "fl", Target: "f"}, {Path: "n", Target: "nowhere"}},
			OutputDirectorySymlinks: []*repb.OutputSymlink{{Path: "dl", Target: "d"}},
		}},
		{name: "the whole working directory", script: "true", dirs: []string{""}, want: &repb.ActionResult{
			OutputDirectories: []*repb.OutputDirectory{{TreeDigest: r.blob("\x0a\x00"), IsTopologicallySorted: true}},
		}},
		{name: "a directory as a file", script: "mkdir f", files: []string{"f"}, code: codes.FailedPrecondition},
		{name: "a file as a directory", script: "> d", dirs: []string{"d"}, code: codes.FailedPrecondition},
		{name: "a link to a directory as a file", script: "mkdir d; ln -s d f", files: []string{"f"}, code: codes.FailedPrecondition},
	} {
		command := script(c.script)
		command.OutputFiles, command.OutputDirectories = c.files, c.dirs
		resp := r.run(r.task(command, nil, nil))
		if codes.Code(resp.GetStatus().GetCode()) != c.code {
			t.Errorf("%s: status %v", c.name, resp.GetStatus())
		}
		if diff := cmp.Diff(c.want, resp.GetResult(), protocmp.Transform(), protocmp.IgnoreFields(&repb.ActionResult{}, "execution_metadata")); c.want != nil && diff != "" {
			t.Errorf("%s: %s", c.name, diff)
		}
	}
}

func TestSymlinksOfNewClients(t *testing.T) {
	r := newRig(t, nil)
	c := script("mkdir d; ln -s d dl; ln -s /etc/passwd abs")
	c.OutputPaths = []string{"abs", "dl"}
	c.OutputFiles = []string{"ignored"}
	abs, dl := &repb.OutputSymlink{Path: "abs", Target: "/etc/passwd"}, &repb.OutputSymlink{Path: "dl", Target: "d"}
	want := &repb.ActionResult{
		OutputSymlinks:     []*repb.OutputSymlink{abs, dl},
		OutputFileSymlinks: []*repb.OutputSymlink{abs}, OutputDirectorySymlinks: []*repb.OutputSymlink{dl},
	}
	res := r.result(r.task(c, nil, nil))
	if diff := cmp.Diff(want, res, protocmp.Transform(), protocmp.IgnoreFields(&repb.ActionResult{}, "execution_metadata")); diff != "" {
		t.Error(diff)
	}
}

func TestOutputNodeProperties(t *testing.T) {
	r := newRig(t, nil)
	c := script("echo x > f; chmod 640 f; touch -d @1000000000.5 f; mkdir d; cp -p f d/g")
	c.OutputPaths = []string{"d", "f"}
	c.OutputNodeProperties = []string{"mtime", "unix_mode"}
	res := r.result(r.task(c, nil, nil))
	p := res.GetOutputFiles()[0].GetNodeProperties()
	if p.GetUnixMode().GetValue() != 0o640 || p.GetMtime().GetSeconds() != 1000000000 || p.GetMtime().GetNanos() != 500000000 {
		t.Errorf("file: %v", p)
	}
	var tree repb.Tree
	if err := proto.Unmarshal([]byte(r.content(res.GetOutputDirectories()[0].GetTreeDigest())), &tree); err != nil {
		t.Fatal(err)
	}
	if p := tree.GetRoot().GetFiles()[0].GetNodeProperties(); p.GetUnixMode().GetValue() != 0o640 {
		t.Errorf("file in a tree: %v", p)
	}
	if p := tree.GetRoot().GetNodeProperties(); p.GetUnixMode().GetValue() != 0o755 || p.GetMtime() == nil {
		t.Errorf("directory: %v", p)
	}
}

func TestAnOutputMayBeNamedTwice(t *testing.T) {
	r := newRig(t, nil)
	c := script("head -c 200000 /dev/zero > d/big; chmod +x d/big; rmdir e; ln -s d e")
	c.OutputPaths = []string{"d", "d/big", "e/big"}
	res := r.result(r.task(c, nil, nil))
	big := r.blob(strings.Repeat("\x00", 200000))
	for _, f := range res.GetOutputFiles() {
		if !proto.Equal(f.GetDigest(), big) || !f.GetIsExecutable() {
			t.Errorf("output %v", f)
		}
	}
	if len(res.GetOutputFiles()) != 2 || len(res.GetOutputDirectories()) != 1 {
		t.Errorf("result %v", res)
	}
}

func TestResultsFitIntoMessages(t *testing.T) {
	r := newRig(t, nil)
	c := script("ln -s " + strings.Repeat("x", 4000) + " l; echo why")
	for range 3000 {
		c.OutputPaths = append(c.OutputPaths, "l")
	}
	resp := r.run(r.task(c, nil, nil))
	if got := codes.Code(resp.GetStatus().GetCode()); got != codes.FailedPrecondition {
		t.Errorf("%v: %s, in a response of %d bytes", got, resp.GetStatus().GetMessage(), proto.Size(resp))
	}
	if got := string(resp.GetResult().GetStdoutRaw()); got != "why\n" {
		t.Errorf("stdout %q", got)
	}
}

func TestDirectoriesAreForgotten(t *testing.T) {
	c := newDirectories(10000)
	for i := range 100 {
		c.add(digest.Of(digest.SHA256, []byte{byte(i)}), &directory{}, 100)
	}
	if n := c.order.Len(); n != len(c.byName) || n < 10 || n > 20 {
		t.Errorf("%d are remembered", n)
	}
	if c.find(digest.Of(digest.SHA256, []byte{99})) == nil {
		t.Error("the latest is forgotten")
	}
}
