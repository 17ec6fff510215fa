package disk

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/blob/blobtest"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

// mixed makes blobs of all the sizes that are stored differently.
func mixed(from uint64, n int) (bs []blob.Blob) {
	sizes := []int{1, 700, 20_000, blob.SmallSize, blob.SmallSize + 1, 100_000, 1<<20 + 5}
	for i := range n {
		bs = append(bs, blobtest.Blob(from+uint64(i), sizes[i%len(sizes)]))
	}
	return bs
}

func link(t testing.TB, s *Store, d digest.Digest, executable bool) string {
	t.Helper()
	dst := filepath.Join(t.TempDir(), "f")
	if err := s.Link(t.Context(), d, executable, dst); err != nil {
		t.Fatalf("link %s: %v", d, err)
	}
	return dst
}

// serves checks that the disk has exactly these bytes.
func serves(t testing.TB, s *Store, bs ...blob.Blob) {
	t.Helper()
	for _, b := range bs {
		if got, err := get(s, b.Digest); err != nil || !bytes.Equal(got, b.Data) {
			t.Errorf("get %s: %d bytes, %v", b.Digest, len(got), err)
		}
		if p := s.Presence([]digest.Digest{b.Digest}, false)[0]; p != Present {
			t.Errorf("presence of %s is %d", b.Digest, p)
		}
	}
}

// neverWrong checks that each blob is served right, or not at all.
func neverWrong(t testing.TB, s *Store, bs ...blob.Blob) (served int) {
	t.Helper()
	for _, b := range bs {
		got, err := get(s, b.Digest)
		switch {
		case err == nil && bytes.Equal(got, b.Data):
			served++
		case err == nil:
			t.Errorf("get %s: wrong bytes", b.Digest)
		case !blob.IsNotFound(err) && !errors.Is(err, ErrCorrupt):
			t.Errorf("get %s: %v", b.Digest, err)
		case s.Presence([]digest.Digest{b.Digest}, false)[0] != Absent:
			t.Errorf("%s is said to be there after %v", b.Digest, err)
		}
	}
	return served
}

func TestRestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	a := openDisk(t, Options{Dir: dir})
	owned, cached := mixed(0, 30), mixed(100, 30)
	put(t, a.Store, Owned, owned...)
	put(t, a.Store, Cached, cached...)
	a.SetKind(cached[0].Digest, Owned)
	a.SetKind(owned[0].Digest, Cached)
	gone := blobtest.Blob(999, 400_000)
	put(t, a.Store, Owned, gone)
	if !remove(a.Store, gone.Digest) {
		t.Error("delete: it was not there")
	}
	for _, b := range owned[:14] {
		link(t, a.Store, b.Digest, true)
		link(t, a.Store, b.Digest, false)
	}
	want, id := a.Stats(), a.ID()
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}

	for round := range 3 {
		b := openDisk(t, Options{Dir: dir})
		if !b.clean {
			t.Error("the end was not clean")
		}
		if b.ID() != id {
			t.Error("the disk has another id")
		}
		got := b.Stats()
		got.Free = want.Free
		if diff := cmp.Diff(want, got); round == 0 && diff != "" {
			t.Errorf("stats (-before +after):\n%s", diff)
		}
		serves(t, b.Store, append(owned, cached...)...)
		if neverWrong(t, b.Store, gone) != 0 {
			t.Error("a deleted blob is back")
		}
		for _, o := range owned[:14] {
			link(t, b.Store, o.Digest, true)
			link(t, b.Store, o.Digest, false)
		}
		if err := b.stop(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestUnreadIndexIsNoAbsence(t *testing.T) {
	dir := t.TempDir()
	a := openDisk(t, Options{Dir: dir})
	old, fresh, never := mixed(0, 14), mixed(50, 14), blobtest.Blob(99, 5).Digest
	put(t, a.Store, Cached, old...)
	link(t, a.Store, old[1].Digest, true)
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	s, err := Open(Options{Dir: dir, Capacity: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, d := range []digest.Digest{old[0].Digest, never} {
		if p := s.Presence([]digest.Digest{d}, true)[0]; p != Unknown {
			t.Errorf("presence is %d, want unknown", p)
		}
		if _, err := get(s, d); !errors.Is(err, blob.ErrUnavailable) {
			t.Errorf("get: %v", err)
		}
		if err := s.Link(t.Context(), d, true, filepath.Join(t.TempDir(), "x")); !errors.Is(err, blob.ErrUnavailable) {
			t.Errorf("link: %v", err)
		}
	}
	// Meanwhile new blobs, and old ones again, are taken and served.
	put(t, s, Owned, fresh...)
	put(t, s, Owned, old[:7]...)
	link(t, s, old[2].Digest, false)
	serves(t, s, fresh...)
	serves(t, s, old[:7]...)
	if err := s.load(t.Context()); err != nil {
		t.Fatal(err)
	}
	serves(t, s, fresh...)
	serves(t, s, old...)
	if p := s.Presence([]digest.Digest{never}, true)[0]; p != Absent {
		t.Errorf("presence is %d, want absent", p)
	}
	if st := s.Stats(); st.OwnedBlobs != 21 || st.CachedBlobs != 7 || st.Variants != 2 {
		t.Errorf("stats %+v", st)
	}
	checkAccounts(t, s)
}

// checkAccounts compares what the store thinks it occupies with its directory.
func checkAccounts(t testing.TB, s *Store) {
	t.Helper()
	var used int64
	live := map[uint32]int64{}
	for i := range s.index.shards {
		sh := &s.index.shards[i]
		for k := range sh.lists {
			for at := sh.lists[k].oldest; at != 0; at = sh.node(at).newer {
				if e := sh.node(at).entry; e.place.seg != 0 {
					live[e.place.seg] += recordBytes(sh.digestLocked(at), e)
				}
			}
		}
	}
	for _, g := range s.segs.all() {
		used += g.size.Load()
		if g.live.Load() != live[g.number] {
			t.Errorf("segment %d has %d live bytes, counted %d", g.number, live[g.number], g.live.Load())
		}
	}
	for _, dir := range []string{dirFiles, dirLinks} {
		filepath.WalkDir(s.path(dir), func(_ string, e fs.DirEntry, _ error) error {
			if info, err := e.Info(); err == nil && info.Mode().IsRegular() {
				used += fileBytes(info.Size())
			}
			return nil
		})
	}
	if got := s.space.used.Load(); got != used {
		t.Errorf("%d bytes are used, counted %d", used, got)
	}
}

func copyTree(t testing.TB, from string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "disk")
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return to
}

// TestKilledAtAnyMoment copies the directory between steps of a random history:
// what a process leaves that is killed there.
func TestKilledAtAnyMoment(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 2))
	o := Options{Dir: t.TempDir(), Capacity: 64 << 20}
	a := readDisk(t, o)
	have, gone := map[digest.Digest]blob.Blob{}, map[digest.Digest]blob.Blob{}
	blobs := mixed(0, 60)
	for step := range 300 {
		b := blobs[rng.IntN(len(blobs))]
		switch rng.IntN(10) {
		case 0, 1, 2, 3, 4:
			put(t, a, Kind(1+rng.IntN(2)), b)
			have[b.Digest] = b
			delete(gone, b.Digest)
		case 5, 6:
			remove(a, b.Digest)
			if _, ok := have[b.Digest]; ok {
				gone[b.Digest] = b
			}
			delete(have, b.Digest)
		case 7:
			if _, ok := have[b.Digest]; ok {
				link(t, a, b.Digest, rng.IntN(2) == 0)
			}
		case 8:
			if err := a.checkpoint(); err != nil {
				t.Fatal(err)
			}
		case 9:
			a.app.seal()
			a.rewriteFor(t.Context(), 0)
			if rng.IntN(3) == 0 {
				if err := a.snapshot(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if step%25 != 24 {
			continue
		}
		c := o
		c.Dir = copyTree(t, o.Dir)
		s := readDisk(t, c)
		if s.clean {
			t.Fatal("a killed process ended cleanly")
		}
		for _, b := range have {
			serves(t, s, b)
		}
		for _, b := range gone {
			neverWrong(t, s, b)
		}
		checkAccounts(t, s)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		os.RemoveAll(c.Dir)
	}
	checkAccounts(t, a)
}

// TestDamage cuts and flips at random in every kind of file. Whatever is lost,
// no wrong byte is served and no lie told.
func TestDamage(t *testing.T) {
	t.Parallel()
	for _, clean := range []bool{false, true} {
		t.Run(fmt.Sprintf("after a clean end %t", clean), func(t *testing.T) {
			o := Options{Dir: t.TempDir()}
			a := openDisk(t, o)
			blobs := mixed(0, 28)
			put(t, a.Store, Owned, blobs[:16]...)
			if err := a.snapshot(); err != nil {
				t.Fatal(err)
			}
			put(t, a.Store, Owned, blobs[16:]...)
			for _, b := range blobs[:14] {
				link(t, a.Store, b.Digest, false)
			}
			if clean {
				if err := a.stop(); err != nil {
					t.Fatal(err)
				}
			}
			for seed := range uint64(6) {
				c := Options{Dir: copyTree(t, o.Dir)}
				what := damage(t, c.Dir, rand.New(rand.NewPCG(seed, 1)))
				s := openDisk(t, c)
				served := neverWrong(t, s.Store, blobs...)
				// One damaged file costs at most what is in it.
				if strings.Contains(what, dirIndex) && served != len(blobs) {
					t.Errorf("%s: %d of %d served", what, served, len(blobs))
				}
				for _, b := range blobs[:14] {
					dst := filepath.Join(t.TempDir(), "f")
					if err := s.Link(t.Context(), b.Digest, false, dst); err != nil {
						neverWrong(t, s.Store, b)
					} else if got, err := os.ReadFile(dst); err != nil || !bytes.Equal(got, b.Data) {
						t.Errorf("%s: a link to wrong bytes, %v", what, err)
					}
				}
				put(t, s.Store, Owned, blobs...)
				serves(t, s.Store, blobs...)
				if err := s.stop(); err != nil {
					t.Fatal(err)
				}
				os.RemoveAll(c.Dir)
			}
		})
	}
}

// damage cuts or flips something in one random file.
func damage(t *testing.T, dir string, rng *rand.Rand) string {
	var paths []string
	for _, sub := range []string{dirSegments, dirFiles, dirLinks, dirIndex} {
		var in []string
		filepath.WalkDir(filepath.Join(dir, sub), func(p string, e fs.DirEntry, _ error) error {
			if e.Type().IsRegular() {
				in = append(in, p)
			}
			return nil
		})
		paths = append(paths, in[rng.IntN(len(in))])
	}
	path := paths[rng.IntN(len(paths))]
	data, err := os.ReadFile(path)
	if err != nil || len(data) == 0 {
		t.Fatalf("%s: %d bytes, %v", path, len(data), err)
	}
	at := rng.IntN(len(data))
	if rng.IntN(3) == 0 {
		data = data[:at]
	} else {
		data[at] ^= 1 << rng.IntN(8)
	}
	os.Chmod(path, 0o600)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%s damaged at %d", strings.TrimPrefix(path, dir), at)
}

// TestHoleInTheTail lets a page in the middle of what was written last never
// reach the device: records behind it are found.
func TestHoleInTheTail(t *testing.T) {
	o := Options{Dir: t.TempDir()}
	a := openDisk(t, o)
	var bs []blob.Blob
	for i := range 50 {
		bs = append(bs, blobtest.Blob(uint64(i), 1000))
	}
	for _, err := range a.PutBatch(t.Context(), Owned, bs) {
		if err != nil {
			t.Fatal(err)
		}
	}
	c := Options{Dir: copyTree(t, o.Dir)}
	f, err := os.OpenFile(filepath.Join(c.Dir, dirSegments, "00000001"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteAt(make([]byte, 4096), 8192)
	f.Close()
	s := openDisk(t, c)
	if n := neverWrong(t, s.Store, bs...); n < 44 || n > 46 {
		t.Errorf("%d of 50 survive the loss of 4 KiB", n)
	}
}

// TestForgedRecord stores a blob that looks like records of another blob, and
// damages the record around it: the forgery is not believed.
func TestForgedRecord(t *testing.T) {
	o := Options{Dir: t.TempDir()}
	a := openDisk(t, o)
	victim, lie := blobtest.Blob(1, 100).Digest, blobtest.Data(2, 100)
	forged := appendRecordHeader(make([]byte, 64), victim, uint8(Owned), len(lie), checksum(lie))
	forged = append(forged, lie...)
	put(t, a.Store, Owned, blob.Blob{Digest: digest.Of(digest.SHA256, forged), Data: forged})
	honest := blobtest.Blob(3, 100)
	put(t, a.Store, Owned, honest)
	c := Options{Dir: copyTree(t, o.Dir)}
	f, err := os.OpenFile(filepath.Join(c.Dir, dirSegments, "00000001"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteAt([]byte{0}, magicSize+4)
	f.Close()
	s := openDisk(t, c)
	if _, err := get(s.Store, victim); !blob.IsNotFound(err) {
		t.Errorf("get of the victim: %v", err)
	}
	serves(t, s.Store, honest)
}

func TestLostIndexIsRebuilt(t *testing.T) {
	o := Options{Dir: t.TempDir()}
	a := openDisk(t, o)
	blobs := mixed(0, 40)
	put(t, a.Store, Owned, blobs...)
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(o.Dir, dirIndex)); err != nil {
		t.Fatal(err)
	}
	s := openDisk(t, o)
	serves(t, s.Store, blobs...)
	s.checkAccounts(t)
}

func TestForeignFilesDoNoHarm(t *testing.T) {
	o := Options{Dir: t.TempDir()}
	a := openDisk(t, o)
	blobs := mixed(0, 40)
	put(t, a.Store, Owned, blobs...)
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(o.Dir, dirIndex)); err != nil { // so that all is looked at
		t.Fatal(err)
	}
	for _, dir := range []string{"", dirSegments, dirFiles, dirLinks, dirTemp, dirTrash} {
		if err := os.WriteFile(filepath.Join(o.Dir, dir, "stray"), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := openDisk(t, o)
	serves(t, s.Store, blobs...)
}

func TestEmptiedDiskIsAnotherDisk(t *testing.T) {
	o := Options{Dir: t.TempDir()}
	a := openDisk(t, o)
	id := a.ID()
	if _, err := Open(Options{Dir: o.Dir, Capacity: 1 << 30}); !errors.Is(err, ErrLocked) {
		t.Errorf("a second process got the directory: %v", err)
	}
	put(t, a.Store, Owned, mixed(0, 7)...)
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{dirSegments, dirFiles} {
		if err := os.RemoveAll(filepath.Join(o.Dir, dir)); err != nil {
			t.Fatal(err)
		}
	}
	b := openDisk(t, o)
	if b.ID() == id {
		t.Error("a disk that lost its contents keeps its id")
	}
	if n := neverWrong(t, b.Store, mixed(0, 7)...); n != 0 {
		t.Errorf("%d blobs outlived their files", n)
	}
	b.checkAccounts(t)
}

func TestDeadUploadsAreRemoved(t *testing.T) {
	o := Options{Dir: t.TempDir()}
	a := openDisk(t, o)
	w, err := a.Create(blobtest.Blob(1, 1<<20).Digest, Owned)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	w.Write(make([]byte, 1000))
	c := Options{Dir: copyTree(t, o.Dir)}
	s := openDisk(t, c)
	for _, dir := range []string{dirTemp, dirTrash} {
		if names, err := readNames(s.path(dir)); err != nil || len(names) != 0 {
			t.Errorf("%s holds %v, %v", dir, names, err)
		}
	}
}

// The child of TestSIGKILL stores blobs and says so until it is killed.
const childEnv = "REMEX_DISK_TEST_CHILD"

func child(dir string) {
	s, err := Open(Options{Dir: dir, Capacity: 1 << 30})
	if err != nil {
		fmt.Println("error", err)
		return
	}
	go s.Run(context.Background())
	for w := range uint64(4) {
		go func() {
			for i := uint64(0); ; i++ {
				n := 500
				if i%10 == 0 {
					n = 100_000
				}
				seed := w*1_000_000 + i
				b := blobtest.Blob(seed, n)
				if err := s.Put(context.Background(), b.Digest, Owned, bytes.NewReader(b.Data)); err != nil {
					fmt.Println("error", err)
				}
				fmt.Println(seed, n)
			}
		}()
	}
	select {}
}

func TestSIGKILL(t *testing.T) {
	dir := t.TempDir()
	var acked []blob.Blob
	for round := range 3 {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); n++ {
			seed, size, _ := strings.Cut(lines.Text(), " ")
			i, err1 := strconv.ParseUint(seed, 10, 64)
			k, err2 := strconv.Atoi(size)
			if err1 != nil || err2 != nil {
				t.Fatalf("the child said %q", lines.Text())
			}
			acked = append(acked, blobtest.Blob(i, k))
			if n == 200+round*77 {
				cmd.Process.Kill()
			}
		}
		cmd.Wait()
	}
	s := openDisk(t, Options{Dir: dir})
	serves(t, s.Store, acked...)
	s.checkAccounts(t)
}
