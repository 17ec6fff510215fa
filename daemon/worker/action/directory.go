package action

import (
	"container/list"
	"context"
	"fmt"
	"strings"
	"sync"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"google.golang.org/protobuf/proto"

	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	"github.com/remex-build/terraform-provider-remex/daemon/sandbox"
)

// directory is a Directory message taken apart and checked.
type directory struct {
	files    []sandbox.File
	symlinks []sandbox.Symlink
	dirs     []subdirectory
	props    sandbox.Properties
}

type subdirectory struct {
	name   string
	digest digest.Digest
}

// parseDirectory takes apart the Directory with digest d.
func parseDirectory(d digest.Digest, data []byte) (*directory, error) {
	var m repb.Directory
	if err := proto.Unmarshal(data, &m); err != nil {
		return nil, invalid("directory %s: not a Directory message: %v", d, err)
	}
	bad := func(err error) error { return invalid("directory %s: %v", d, err) }
	dir := &directory{
		files:    make([]sandbox.File, len(m.GetFiles())),
		symlinks: make([]sandbox.Symlink, len(m.GetSymlinks())),
		dirs:     make([]subdirectory, len(m.GetDirectories())),
	}
	var names nameChecker
	var err error
	for i, f := range m.GetFiles() {
		if err := names.check(f.GetName(), i == 0); err != nil {
			return nil, bad(err)
		}
		out := &dir.files[i]
		out.Name, out.Executable = f.GetName(), f.GetIsExecutable()
		if out.Digest, err = parseDigest(d.Function(), f.GetDigest()); err != nil {
			return nil, bad(fmt.Errorf("file %q: %w", f.GetName(), err))
		}
		if out.Properties, err = parseProperties(f.GetNodeProperties()); err != nil {
			return nil, bad(fmt.Errorf("file %q: %w", f.GetName(), err))
		}
	}
	for i, s := range m.GetDirectories() {
		if err := names.check(s.GetName(), i == 0); err != nil {
			return nil, bad(err)
		}
		dir.dirs[i].name = s.GetName()
		if dir.dirs[i].digest, err = parseDigest(d.Function(), s.GetDigest()); err != nil {
			return nil, bad(fmt.Errorf("directory %q: %w", s.GetName(), err))
		}
	}
	for i, s := range m.GetSymlinks() {
		if err := names.check(s.GetName(), i == 0); err != nil {
			return nil, bad(err)
		}
		if t := s.GetTarget(); t == "" || strings.IndexByte(t, 0) >= 0 || len(t) > 4095 {
			return nil, bad(fmt.Errorf("symlink %q has the unusable target %.100q", s.GetName(), t))
		}
		dir.symlinks[i].Name, dir.symlinks[i].Target = s.GetName(), s.GetTarget()
		if dir.symlinks[i].Properties, err = parseProperties(s.GetNodeProperties()); err != nil {
			return nil, bad(fmt.Errorf("symlink %q: %w", s.GetName(), err))
		}
	}
	if dir.props, err = parseProperties(m.GetNodeProperties()); err != nil {
		return nil, bad(err)
	}
	if name, ok := names.duplicate(dir); ok {
		return nil, bad(fmt.Errorf("the name %q is there twice", name))
	}
	return dir, nil
}

// nameChecker refuses names that could lead elsewhere. It notices whether
// each list is sorted, as it should be: only others need a map to find
// duplicates within themselves.
type nameChecker struct {
	last     string
	unsorted bool
}

func (c *nameChecker) check(name string, first bool) error {
	switch {
	case name == "" || name == "." || name == "..":
		return fmt.Errorf("%q is not a file name", name)
	case strings.IndexByte(name, '/') >= 0 || strings.IndexByte(name, 0) >= 0:
		return fmt.Errorf("the name %q has a slash or a NUL in it", name)
	case len(name) > 255:
		return fmt.Errorf("the name %.40q... has more than 255 bytes", name)
	}
	if !first && name <= c.last {
		c.unsorted = true
	}
	c.last = name
	return nil
}

// duplicate finds a name that stands twice in dir.
func (c *nameChecker) duplicate(dir *directory) (string, bool) {
	kinds := 0
	for _, n := range []int{len(dir.files), len(dir.dirs), len(dir.symlinks)} {
		if n > 0 {
			kinds++
		}
	}
	if kinds < 2 && !c.unsorted {
		return "", false
	}
	seen := make(map[string]struct{}, len(dir.files)+len(dir.dirs)+len(dir.symlinks))
	again := func(name string) bool {
		_, ok := seen[name]
		seen[name] = struct{}{}
		return ok
	}
	for i := range dir.files {
		if again(dir.files[i].Name) {
			return dir.files[i].Name, true
		}
	}
	for i := range dir.dirs {
		if again(dir.dirs[i].name) {
			return dir.dirs[i].name, true
		}
	}
	for i := range dir.symlinks {
		if again(dir.symlinks[i].Name) {
			return dir.symlinks[i].Name, true
		}
	}
	return "", false
}

func parseDigest(fn digest.Function, d *repb.Digest) (digest.Digest, error) {
	return digest.Parse(fn, d.GetHash(), d.GetSizeBytes())
}

func parseProperties(m *repb.NodeProperties) (sandbox.Properties, error) {
	var p sandbox.Properties
	if m == nil {
		return p, nil
	}
	if ps := m.GetProperties(); len(ps) > 0 {
		return p, fmt.Errorf("the node property %q is unknown", ps[0].GetName())
	}
	if t := m.GetMtime(); t != nil {
		if err := t.CheckValid(); err != nil {
			return p, fmt.Errorf("mtime: %w", err)
		}
		p.Mtime = t.AsTime()
	}
	if mode := m.GetUnixMode(); mode != nil {
		p.Mode, p.HasMode = mode.GetValue()&0o777, true
	}
	return p, nil
}

// directoryBudget is how many bytes of directories a worker remembers: the
// actions of a build share most of theirs.
const directoryBudget = 24 << 20

// directories remembers directories taken apart, least recently used first to
// go.
type directories struct {
	mu     sync.Mutex // guards everything below
	byName map[digest.Digest]*list.Element
	order  list.List // of *known; the latest in front
	room   int64
}

type known struct {
	digest digest.Digest
	dir    *directory
	weight int64
}

func newDirectories(budget int64) *directories {
	return &directories{byName: make(map[digest.Digest]*list.Element), room: budget}
}

func (c *directories) find(d digest.Digest) *directory {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.byName[d]
	if e == nil {
		return nil
	}
	c.order.MoveToFront(e)
	return e.Value.(*known).dir
}

// add remembers dir, whose message was of size bytes.
func (c *directories) add(d digest.Digest, dir *directory, size int) {
	// A file takes 100 bytes in the message and twice that here.
	weight := int64(400 + size + 180*(len(dir.files)+len(dir.dirs)+len(dir.symlinks)))
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byName[d] != nil {
		return
	}
	c.byName[d] = c.order.PushFront(&known{d, dir, weight})
	c.room -= weight
	for c.room < 0 && c.order.Len() > 1 {
		k := c.order.Remove(c.order.Back()).(*known)
		delete(c.byName, k.digest)
		c.room += k.weight
	}
}

// maxDirectories bounds the distinct directories of an input root.
const maxDirectories = 1 << 18

// tree reads the tree of directories below root level by level. Directories
// that are missing are listed, and stand as empty ones in the tree.
func (a *Actions) tree(ctx context.Context, root digest.Digest, rootBlob []byte) (t *sandbox.Tree, missing []digest.Digest, err error) {
	trees := map[digest.Digest]*sandbox.Tree{root: {}}
	for level := []digest.Digest{root}; len(level) > 0; {
		var next []digest.Digest
		dirs, lost, err := a.level(ctx, level, rootBlob)
		if err != nil {
			return nil, nil, err
		}
		missing, rootBlob = append(missing, lost...), nil
		for i, dir := range dirs {
			if dir == nil {
				continue
			}
			t := trees[level[i]]
			t.Files, t.Symlinks, t.Properties = dir.files, dir.symlinks, dir.props
			t.Dirs = make([]sandbox.Subtree, len(dir.dirs))
			for j, s := range dir.dirs {
				sub := trees[s.digest]
				if sub == nil {
					sub = &sandbox.Tree{}
					trees[s.digest] = sub
					next = append(next, s.digest)
				}
				t.Dirs[j] = sandbox.Subtree{Name: s.name, Tree: sub}
			}
		}
		if len(trees) > maxDirectories {
			return nil, nil, invalid("the input root has more than %d different directories", maxDirectories)
		}
		level = next
	}
	return trees[root], missing, nil
}

// level finds directories, in the order of ds; those that are missing are nil.
// first is the message of the first one, if that is at hand.
func (a *Actions) level(ctx context.Context, ds []digest.Digest, first []byte) (dirs []*directory, missing []digest.Digest, err error) {
	dirs = make([]*directory, len(ds))
	var need []digest.Digest
	var at []int
	take := func(i int, data []byte) error {
		dir, err := parseDirectory(ds[i], data)
		if err == nil {
			dirs[i] = dir
			a.dirs.add(ds[i], dir, len(data))
		}
		return err
	}
	for i, d := range ds {
		switch dirs[i] = a.dirs.find(d); {
		case dirs[i] != nil:
		case d.IsEmpty():
			dirs[i] = &directory{}
		case i == 0 && len(first) > 0 && digest.Of(d.Function(), first) == d:
			if err := take(i, first); err != nil {
				return nil, nil, err
			}
		default:
			need, at = append(need, d), append(at, i)
		}
	}
	if len(need) == 0 {
		return dirs, nil, nil
	}
	missing, err = a.read(ctx, need, func(j int, data []byte) error { return take(at[j], data) })
	return dirs, missing, err
}
