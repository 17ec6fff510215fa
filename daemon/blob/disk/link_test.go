package disk

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/blob/blobtest"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

func inode(t testing.TB, path string) uint64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Ino
}

func TestLink(t *testing.T) {
	s := openDisk(t, Options{})
	for _, b := range mixed(0, 7) {
		put(t, s.Store, Owned, b)
		inodes := map[uint64]bool{}
		for _, executable := range []bool{false, true} {
			first, second := link(t, s.Store, b.Digest, executable), link(t, s.Store, b.Digest, executable)
			if inode(t, first) != inode(t, second) {
				t.Errorf("%s: two links are two files", b.Digest)
			}
			inodes[inode(t, first)] = true
			data, err := os.ReadFile(first)
			if err != nil || !bytes.Equal(data, b.Data) {
				t.Errorf("%s: %d bytes, %v", b.Digest, len(data), err)
			}
			info, err := os.Stat(first)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := info.Mode().Perm(), fs.FileMode(linkMode(executable)); got != want {
				t.Errorf("%s has mode %s, want %s", b.Digest, got, want)
			}
			if got := info.ModTime().Unix(); got != fileTimes[1].Sec {
				t.Errorf("%s was modified at %d", b.Digest, got)
			}
		}
		if len(inodes) != 2 {
			t.Errorf("%s: plain and executable are one file", b.Digest)
		}
	}
	s.checkAccounts(t)
}

func TestLinkRefusals(t *testing.T) {
	s := openDisk(t, Options{})
	b := blobtest.Blob(1, 100)
	if err := s.Link(t.Context(), b.Digest, false, filepath.Join(t.TempDir(), "f")); !blob.IsNotFound(err) {
		t.Errorf("link to an absent blob: %v", err)
	}
	put(t, s.Store, Owned, b)
	if err := s.Link(t.Context(), b.Digest, false, filepath.Join(t.TempDir(), "no", "f")); !errors.Is(err, fs.ErrNotExist) || blob.IsNotFound(err) {
		t.Errorf("link into an absent directory: %v", err)
	}
	dst := link(t, s.Store, b.Digest, false)
	if err := s.Link(t.Context(), b.Digest, false, dst); !errors.Is(err, fs.ErrExist) {
		t.Errorf("link over a file: %v", err)
	}
}

func TestEmptyFilesAreNeverShared(t *testing.T) {
	s := openDisk(t, Options{})
	d := digest.Empty(digest.SHA256)
	a, b := link(t, s.Store, d, false), link(t, s.Store, d, false)
	if inode(t, a) == inode(t, b) {
		t.Error("two empty files are one")
	}
	info, err := os.Stat(link(t, s.Store, d, true))
	if err != nil || info.Mode().Perm() != 0o555 || info.Size() != 0 {
		t.Errorf("%v, %v", info, err)
	}
}

// TestTooManyLinks meets the limit of the file system, as ext4 has it.
func TestTooManyLinks(t *testing.T) {
	var full atomic.Bool
	s := openDisk(t, Options{faults: func(op string) error {
		if op == "link" && full.Swap(false) {
			return unix.EMLINK
		}
		return nil
	}})
	for _, b := range mixed(0, 7) {
		put(t, s.Store, Owned, b)
		for _, executable := range []bool{false, true} {
			old := link(t, s.Store, b.Digest, executable)
			full.Store(true)
			fresh := link(t, s.Store, b.Digest, executable)
			if inode(t, old) == inode(t, fresh) {
				t.Errorf("%s: no fresh copy was made", b.Digest)
			}
			for _, path := range []string{old, fresh} {
				if data, err := os.ReadFile(path); err != nil || !bytes.Equal(data, b.Data) {
					t.Errorf("%s: %d bytes, %v", b.Digest, len(data), err)
				}
			}
		}
	}
	s.checkAccounts(t)
}

func TestVanishedLinkFileIsMadeAgain(t *testing.T) {
	var lost []digest.Digest
	s := openDisk(t, Options{OnCorrupt: func(d digest.Digest) { lost = append(lost, d) }})
	for _, b := range mixed(0, 7) {
		put(t, s.Store, Owned, b)
		large := b.Digest.Size() > blob.SmallSize
		link(t, s.Store, b.Digest, true)
		os.Remove(s.linkPath(b.Digest, large, true))
		link(t, s.Store, b.Digest, true)
		if !large {
			continue
		}
		// The blob itself is gone: an error, but no miss.
		os.Remove(s.filePath(b.Digest))
		err := s.Link(t.Context(), b.Digest, false, filepath.Join(t.TempDir(), "f"))
		if !errors.Is(err, ErrCorrupt) || !errors.Is(err, blob.ErrUnavailable) {
			t.Errorf("link to a lost file: %v", err)
		}
	}
	if len(lost) != 3 {
		t.Errorf("%d losses were told, want 3", len(lost))
	}
}

func TestDamagedLinkFileIsFoundAfterARestart(t *testing.T) {
	o := Options{Dir: t.TempDir()}
	a := openDisk(t, o)
	bs := mixed(0, 7)
	put(t, a.Store, Owned, bs...)
	for _, b := range bs {
		link(t, a.Store, b.Digest, true)
		path := a.linkPath(b.Digest, b.Digest.Size() > blob.SmallSize, true)
		os.Chmod(path, 0o600)
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		f.WriteAt([]byte{b.Data[0] ^ 1}, 0)
		f.Close()
	}
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	s := openDisk(t, o)
	for _, b := range bs {
		if data, err := os.ReadFile(link(t, s.Store, b.Digest, true)); err != nil || !bytes.Equal(data, b.Data) {
			t.Errorf("%s: wrong bytes, %v", b.Digest, err)
		}
	}
	s.checkAccounts(t)
}

func TestAdopt(t *testing.T) {
	s := openDisk(t, Options{})
	for i, b := range mixed(0, 14) {
		path := filepath.Join(t.TempDir(), "out")
		if err := os.WriteFile(path, b.Data, 0o755); err != nil {
			t.Fatal(err)
		}
		if i >= 7 {
			// Somebody else has a name for it, and might write to it.
			if err := os.Link(path, path+"2"); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Adopt(t.Context(), b.Digest, path, Owned); err != nil {
			t.Fatal(err)
		}
		if i >= 7 {
			os.WriteFile(path+"2", []byte("other"), 0o600)
		}
		serves(t, s.Store, b)
		link(t, s.Store, b.Digest, false)
	}
	b := blobtest.Blob(1000, 1<<20)
	path := filepath.Join(t.TempDir(), "out")
	os.WriteFile(path, b.Data[:1000], 0o644)
	if err := s.Adopt(t.Context(), b.Digest, path, Owned); !errors.Is(err, blob.ErrMismatch) {
		t.Errorf("adopt of a short file: %v", err)
	}
	os.Symlink(path, path+"link")
	if err := s.Adopt(t.Context(), b.Digest, path+"link", Owned); err == nil || blob.IsNotFound(err) {
		t.Errorf("adopt of a symlink: %v", err)
	}
	s.checkAccounts(t)
}

func TestWriterCanPause(t *testing.T) {
	s := openDisk(t, Options{})
	for _, b := range mixed(0, 7) {
		w, err := s.Create(b.Digest, Owned)
		if err != nil {
			t.Fatal(err)
		}
		half := len(b.Data) / 2
		w.Write(b.Data[:half])
		if err := s.Link(t.Context(), b.Digest, false, filepath.Join(t.TempDir(), "f")); !blob.IsNotFound(err) {
			t.Errorf("half a blob can be linked to: %v", err)
		}
		if w.Offset() != int64(half) {
			t.Errorf("offset %d after %d bytes", w.Offset(), half)
		}
		w.Write(b.Data[half:])
		if err := w.Commit(); err != nil {
			t.Error(err)
		}
		w.Close()
		serves(t, s.Store, b)
		again, err := s.Create(b.Digest, Owned)
		if err != nil {
			t.Fatal(err)
		}
		again.Write(b.Data[:half])
		again.Close()
		again.Close()
	}
	s.checkAccounts(t)
}

func TestCorruptCopies(t *testing.T) {
	var lost atomic.Int64
	s := openDisk(t, Options{OnCorrupt: func(digest.Digest) { lost.Add(1) }})
	bs := mixed(0, 14)
	put(t, s.Store, Owned, bs...)
	for i, b := range bs {
		e, _ := s.lookup(b.Digest, false)
		path, off := s.segmentPath(e.place.seg), int64(e.place.off)+recordSize(b.Digest, 0)
		if b.Digest.Size() > blob.SmallSize {
			path, off = s.filePath(b.Digest), b.Digest.Size()-1
		}
		os.Chmod(path, 0o600)
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		f.WriteAt([]byte{0xaa ^ b.Data[off%int64(len(b.Data))], 0x55}, off)
		f.Close()
		if i%2 == 0 {
			_, err = get(s.Store, b.Digest)
		} else {
			err = s.GetBatch(t.Context(), []digest.Digest{b.Digest})[0].Err
		}
		if !errors.Is(err, ErrCorrupt) || !errors.Is(err, blob.ErrUnavailable) || blob.IsNotFound(err) {
			t.Errorf("get of a corrupt copy: %v", err)
		}
		if _, err := get(s.Store, b.Digest); !blob.IsNotFound(err) {
			t.Errorf("get after the copy was dropped: %v", err)
		}
		put(t, s.Store, Owned, b)
		serves(t, s.Store, b)
	}
	if lost.Load() != 14 || s.Stats().Corrupt != 14 {
		t.Errorf("%d losses told, %d counted, want 14", lost.Load(), s.Stats().Corrupt)
	}
	s.checkAccounts(t)
}

// TestEverythingAtOnce lets all methods and all of Run's work meet on a disk
// that is too small for the blobs.
func TestEverythingAtOnce(t *testing.T) {
	t.Parallel()
	d := openDisk(t, Options{Capacity: 12 << 20, ScrubRate: 1 << 20})
	blobs := mixed(0, 70)
	for i := range blobs {
		if blobs[i].Digest.Size() > 1<<20 {
			blobs[i] = blobtest.Blob(uint64(i), 1<<20+3)
		}
	}
	dir := t.TempDir()
	var wg sync.WaitGroup
	for w := range 6 {
		wg.Go(func() {
			for i := range 80 {
				b := blobs[(i*7+w*13)%len(blobs)]
				errs := d.PutBatch(t.Context(), Cached, []blob.Blob{b})
				if errs[0] != nil && !errors.Is(errs[0], blob.ErrFull) {
					t.Errorf("put: %v", errs[0])
				}
				got, err := get(d.Store, b.Digest)
				if err != nil && !blob.IsNotFound(err) || err == nil && !bytes.Equal(got, b.Data) {
					t.Errorf("get: %d bytes, %v", len(got), err)
				}
				dst := filepath.Join(dir, fmt.Sprint(w, "-", i))
				if err := d.Link(t.Context(), b.Digest, i%2 == 0, dst); err == nil {
					if got, err := os.ReadFile(dst); err != nil || !bytes.Equal(got, b.Data) {
						t.Errorf("link: %d bytes, %v", len(got), err)
					}
					os.Remove(dst)
				} else if !blob.IsNotFound(err) && !errors.Is(err, blob.ErrFull) {
					t.Errorf("link: %v", err)
				}
				switch i % 50 {
				case 7:
					remove(d.Store, b.Digest)
				case 17:
					d.app.seal()
					d.space.kick()
				case 27:
					d.SetKind(b.Digest, Owned)
					d.SetKind(b.Digest, Cached)
				case 37:
					d.Stats()
				}
			}
		})
	}
	wg.Wait()
	d.checkAccounts(t)
	if n := d.Stats().Corrupt; n != 0 {
		t.Errorf("%d copies were taken for corrupt", n)
	}
}
