package disk

import (
	"os"
	"path/filepath"
	"testing"
)

// The journals tell of segments by their numbers: a second one under the same
// number would be taken for the first.
func TestASegmentsNumberIsNotUsedAgain(t *testing.T) {
	t.Parallel()
	for name, empty := range map[string]func(t *testing.T, s *Store){
		"when all its records went": func(t *testing.T, s *Store) {
			for _, b := range mixed(0, 7) {
				remove(s, b.Digest)
			}
			s.app.seal()
			s.rewriteSparse(t.Context())
		},
		"when its file was deleted": func(t *testing.T, s *Store) {
			for _, dir := range []string{dirSegments, dirFiles} {
				if err := os.RemoveAll(filepath.Join(s.o.Dir, dir)); err != nil {
					t.Fatal(err)
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := Options{Dir: t.TempDir(), Capacity: 64 << 20}
			a := readDisk(t, o)
			put(t, a, Owned, mixed(0, 7)...)
			if err := a.checkpoint(); err != nil {
				t.Fatal(err)
			}
			empty(t, a)
			if err := a.Close(); err != nil {
				t.Fatal(err)
			}
			b := readDisk(t, o)
			fresh := mixed(100, 4)
			put(t, b, Owned, fresh...)
			checkAccounts(t, b)
			killed := o
			killed.Dir = copyTree(t, o.Dir)
			serves(t, readDisk(t, killed), fresh...)
		})
	}
}
