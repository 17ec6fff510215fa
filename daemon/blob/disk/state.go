package disk

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

// idHeader starts the file that holds the disk's id, and is the version of the
// whole format.
const idHeader = "remex disk 1\n"

// readID reads the disk's id. A disk without contents gets a new one: to the
// cluster it is another disk.
func (s *Store) readID() error {
	b, err := os.ReadFile(s.path("disk"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err == nil && len(b) > 0 {
		text, ok := strings.CutPrefix(string(b), idHeader)
		if !ok {
			return fmt.Errorf("%s is of another version, or no disk of ours", s.path("disk"))
		}
		id, herr := hex.DecodeString(strings.TrimSpace(text))
		if herr != nil || len(id) != len(s.id) {
			return fmt.Errorf("%s is damaged", s.path("disk"))
		}
		copy(s.id[:], id)
		empty, err := s.empty()
		if err != nil || !empty {
			return err
		}
	}
	rand.Read(s.id[:])
	return renameio.WriteFile(s.path("disk"), []byte(idHeader+s.id.String()+"\n"), 0o600)
}

func (s *Store) empty() (bool, error) {
	if len(s.old) > 0 {
		return false, nil
	}
	f, err := os.Open(s.path(dirFiles))
	if err != nil {
		return false, err
	}
	defer f.Close()
	names, err := f.Readdirnames(1)
	return len(names) == 0, ignoreEOF(err)
}

// The marker of a clean end names the boot id of the kernel that had the bytes
// then, since after a reboot nobody knows what reached the device, and the end
// of the journal.
const markerName = "clean"

func (s *Store) marker(gen uint64, size int64) string {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return fmt.Sprintf("%s %d %d\n", strings.TrimSpace(string(boot)), gen, size)
}

// takeMarker removes the marker, and reports whether it was right about the
// journal of generation gen, the last.
func (s *Store) takeMarker(gen uint64) bool {
	b, err := os.ReadFile(s.path(markerName))
	if err != nil || os.Remove(s.path(markerName)) != nil {
		return false
	}
	st, err := os.Stat(s.journalPath(gen))
	return err == nil && string(b) == s.marker(gen, st.Size())
}

func (s *Store) leaveMarker() error {
	return os.WriteFile(s.path(markerName), []byte(s.marker(s.journal.gen, s.journal.size)), 0o600)
}

func (s *Store) segmentPath(number uint32) string {
	return s.path(dirSegments, fmt.Sprintf("%08x", number))
}

func (s *Store) listSegments() error {
	names, err := readNames(s.path(dirSegments))
	if err != nil {
		return err
	}
	for _, name := range names {
		n, err := strconv.ParseUint(name, 16, 32)
		if err != nil || n == 0 {
			continue
		}
		s.old = append(s.old, uint32(n))
		s.app.next = max(s.app.next, uint32(n)+1)
	}
	slices.Sort(s.old)
	return nil
}

func (s *Store) journalPath(gen uint64) string {
	return s.path(dirIndex, fmt.Sprintf("journal-%016x", gen))
}

func (s *Store) snapshotPath(gen uint64) string {
	return s.path(dirIndex, fmt.Sprintf("snapshot-%016x", gen))
}

// indexFile takes the name of a file of the index apart.
func indexFile(name string) (what string, gen uint64, ok bool) {
	what, num, ok := strings.Cut(name, "-")
	if !ok || (what != "journal" && what != "snapshot") {
		return "", 0, false
	}
	gen, err := strconv.ParseUint(num, 16, 64)
	return what, gen, err == nil && len(num) == 16
}

// generations lists the generations of index files, sorted.
func (s *Store) generations() ([]uint64, error) {
	names, err := readNames(s.path(dirIndex))
	if err != nil {
		return nil, err
	}
	var gens []uint64
	for _, name := range names {
		if _, gen, ok := indexFile(name); ok {
			gens = append(gens, gen)
		}
	}
	slices.Sort(gens)
	return slices.Compact(gens), nil
}

// dropGenerations deletes the index files that a snapshot has replaced.
func (s *Store) dropGenerations(before uint64) {
	names, err := readNames(s.path(dirIndex))
	if err != nil {
		return
	}
	for _, name := range names {
		if _, gen, ok := indexFile(name); !ok || gen < before {
			os.Remove(s.path(dirIndex, name))
		}
	}
}

// fan is the directory, of 256, that a blob's files lie in.
func fan(d digest.Digest) string { return fmt.Sprintf("%02x", d.Prefix()>>8) }

func fileName(d digest.Digest) string {
	return d.Function().String() + "-" + d.Hash() + "-" + strconv.FormatInt(d.Size(), 10)
}

// parseFileName is the inverse of fileName.
func parseFileName(name string) (digest.Digest, error) {
	parts := strings.Split(name, "-")
	if len(parts) != 3 {
		return digest.Digest{}, fmt.Errorf("%w: file name %q", digest.ErrMalformed, name)
	}
	fn, ok := digest.FunctionByName(parts[0])
	size, err := strconv.ParseInt(parts[2], 10, 64)
	if !ok || err != nil {
		return digest.Digest{}, fmt.Errorf("%w: file name %q", digest.ErrMalformed, name)
	}
	return digest.Parse(fn, parts[1], size)
}

// filePath is where a large blob lies.
func (s *Store) filePath(d digest.Digest) string {
	return s.o.Dir + "/" + dirFiles + "/" + fan(d) + "/" + fileName(d)
}

// linkPath is what hard links to a blob point to.
func (s *Store) linkPath(d digest.Digest, large, executable bool) string {
	switch {
	case executable:
		return s.o.Dir + "/" + dirLinks + "/" + fan(d) + "/" + fileName(d) + ".x"
	case large:
		return s.filePath(d)
	}
	return s.o.Dir + "/" + dirLinks + "/" + fan(d) + "/" + fileName(d)
}

func (s *Store) tempPath() string {
	return s.o.Dir + "/" + dirTemp + "/" + strconv.FormatUint(s.temp.Add(1), 16)
}

// fault is where tests let operations of the file system fail.
func (s *Store) fault(op string) error {
	if s.o.faults == nil {
		return nil
	}
	return s.o.faults(op)
}

func (s *Store) emptyTrash(ctx context.Context) {
	names, err := readNames(s.path(dirTrash))
	if err != nil {
		return
	}
	for _, name := range names {
		if ctx.Err() != nil {
			return
		}
		if err := os.RemoveAll(s.path(dirTrash, name)); err != nil {
			s.log.Warn("leftovers of dead uploads stay", "err", err)
		}
	}
}

func readNames(dir string) ([]string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}

// umask is the process's. There is no way to read it without setting it, and
// setting it would race with whoever creates files now.
func umask() uint32 {
	b, err := os.ReadFile("/proc/self/status")
	if err == nil {
		for line := range strings.Lines(string(b)) {
			if v, ok := strings.CutPrefix(line, "Umask:"); ok {
				if m, err := strconv.ParseUint(strings.TrimSpace(v), 8, 32); err == nil {
					return uint32(m)
				}
			}
		}
	}
	return 0o777 // unknown: every mode is set explicitly
}

var fileTimes = []unix.Timespec{{Sec: 1_000_000_000}, {Sec: 1_000_000_000}}
