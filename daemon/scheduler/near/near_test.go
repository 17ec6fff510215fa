package near_test

import (
	"fmt"
	"testing"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/near"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/wire"
)

// named is the digest of a file of size bytes.
func named(name string, size int64) digest.Digest {
	d, err := digest.New(digest.SHA256, digest.Of(digest.SHA256, []byte(name)).HashBytes(), size)
	if err != nil {
		panic(err)
	}
	return d
}

func wired(d digest.Digest) *repb.Digest { return &repb.Digest{Hash: d.Hash(), SizeBytes: d.Size()} }

// dir is a directory of files and of directories, and its digest.
func dir(files map[string]int64, subs ...digest.Digest) (digest.Digest, *repb.Directory) {
	m := &repb.Directory{}
	for name, size := range files {
		m.Files = append(m.Files, &repb.FileNode{Name: name, Digest: wired(named(name, size))})
	}
	for i, d := range subs {
		m.Directories = append(m.Directories, &repb.DirectoryNode{Name: fmt.Sprint(i), Digest: wired(d)})
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		panic(err)
	}
	return digest.Of(digest.SHA256, b), m
}

func nobody(uint16) []string { return nil }

func sum(ps []near.Part) (n int64) {
	for _, p := range ps {
		n += p.Bytes
	}
	return n
}

func TestNear(t *testing.T) {
	sdk := map[string]int64{"clang": 300 << 20, "ld": 20 << 20, "a.h": 10, "b.h": 20}
	lib, libDir := dir(sdk)
	root1, dir1 := dir(map[string]int64{"x.cc": 100}, lib)
	root2, dir2 := dir(map[string]int64{"y.cc": 200, "x.o": 1 << 20}, lib, lib)
	m := near.New(func(p uint16) []string {
		if p == named("clang", 0).Prefix() {
			return []string{"owner", "runner"}
		}
		return nil
	})
	m.Add(lib, libDir)
	m.Add(root1, dir1)
	m.Add(root2, dir2)
	parts1, unknown := m.Parts(root1)
	if len(unknown) > 0 || len(parts1) != 4 || sum(parts1) != 320<<20+130 {
		t.Fatalf("%d bytes in %d parts, unknown %v", sum(parts1), len(parts1), unknown)
	}
	m.Used("runner", parts1)
	m.Made("linker", digest.SHA256, &repb.ActionResult{OutputFiles: []*repb.OutputFile{
		{Path: "x.o", Digest: wired(named("x.o", 1<<20))}, {Path: "x.d", Digest: wired(named("x.d", 10))}, {Path: "broken"},
	}})
	m.Made("", digest.SHA256, &repb.ActionResult{OutputFiles: []*repb.OutputFile{{Digest: wired(named("x.o", 1<<20))}}})
	parts2, _ := m.Parts(root2)
	want := []wire.Near{
		{Worker: "runner", Bytes: 320<<20 + 30}, // the directory that is there twice counts once
		{Worker: "owner", Bytes: 300 << 20},
		{Worker: "linker", Bytes: 1 << 20},
	}
	if diff := cmp.Diff(want, m.Near(parts2)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// What has not been shown counts as nothing, and is asked for.
func TestUnknownDirectories(t *testing.T) {
	m := near.New(nobody)
	leaf, leafDir := dir(map[string]int64{"a": 10})
	other, otherDir := dir(map[string]int64{"b": 20})
	middle, middleDir := dir(nil, leaf)
	root, rootDir := dir(map[string]int64{"c": 40}, middle, other)
	for _, step := range []struct {
		d       digest.Digest
		dir     *repb.Directory
		bytes   int64
		unknown []digest.Digest
	}{
		{root, rootDir, 40, []digest.Digest{middle, other}},
		{other, otherDir, 60, []digest.Digest{middle}},
		{middle, middleDir, 60, []digest.Digest{leaf}},
		{leaf, leafDir, 70, nil},
	} {
		if _, unknown := m.Parts(root); len(unknown) == 0 {
			t.Fatal("nothing is unknown before all was shown")
		}
		m.Add(step.d, step.dir)
		for range 2 { // the second time from what was put together
			parts, unknown := m.Parts(root)
			if sum(parts) != step.bytes || !cmp.Equal(unknown, step.unknown, cmp.Comparer(func(a, b digest.Digest) bool { return a == b })) {
				t.Errorf("%d bytes, unknown %v; want %d, %v", sum(parts), unknown, step.bytes, step.unknown)
			}
		}
	}
}

// A tree of any size has a few parts, the largest; a part has a few workers, the
// latest; and what is not asked for is forgotten.
func TestBounds(t *testing.T) {
	m := near.New(nobody)
	files := make(map[string]int64)
	for i := range 1000 {
		files[fmt.Sprint(i)] = int64(i) << 20
	}
	root, rootDir := dir(files)
	m.Add(root, rootDir)
	parts, _ := m.Parts(root)
	if len(parts) != 16 || parts[0].Bytes != 999<<20 || parts[15].Bytes != 984<<20 {
		t.Errorf("%d parts, from %d to %d bytes", len(parts), parts[0].Bytes, parts[len(parts)-1].Bytes)
	}
	for i := range 20 {
		m.Used(fmt.Sprint("w", i), parts)
	}
	if n := m.Near(parts); len(n) != 8 || n[0].Worker != "w12" {
		t.Errorf("near are %v", n)
	}
	for i := range 100_000 {
		d, one := dir(map[string]int64{fmt.Sprint("f", i): 100})
		m.Add(d, one)
		if ps, _ := m.Parts(d); i%100 == 0 {
			m.Used("w", ps)
		}
	}
	if _, unknown := m.Parts(root); len(unknown) != 1 {
		t.Error("what was not asked for is remembered")
	}
}

// However wide and deep a tree is, and though it is not known, a look at it ends.
func TestWalksAreBounded(t *testing.T) {
	m := near.New(nobody)
	level := make([]digest.Digest, 100)
	for i := range level {
		level[i], _ = dir(map[string]int64{fmt.Sprint("never shown ", i): 1})
	}
	var root digest.Digest
	for range 10 { // each of a level leads to all below it
		next := make([]digest.Digest, 100)
		for i := range next {
			var d *repb.Directory
			next[i], d = dir(map[string]int64{fmt.Sprint(i): 1}, level...)
			m.Add(next[i], d)
		}
		level, root = next, next[0]
	}
	if _, unknown := m.Parts(root); len(unknown) == 0 || len(unknown) > 256 {
		t.Errorf("%d unknown directories", len(unknown))
	}
}
