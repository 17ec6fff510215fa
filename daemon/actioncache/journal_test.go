package actioncache

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"
)

func openJournal(t interface{ Fatal(...any) }, dir string) *Journal {
	j, err := OpenJournal(JournalOptions{Dir: dir, Budget: 64 << 20, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return j
}

// read reads the whole journal, as Run does at its start.
func read(j *Journal) {
	for _, id := range j.ids() {
		j.load(id)
	}
}

func closeJournal(t interface{ Fatal(...any) }, j *Journal) {
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
}

func appendAll(t interface{ Fatal(...any) }, j *Journal, es ...Entry) {
	if err := j.Append(es); err != nil {
		t.Fatal(err)
	}
}

// listAll lists j in small pages.
func listAll(t interface{ Fatal(...any) }, j *Journal, since int64) map[Key]Entry {
	m := make(map[Key]Entry)
	for after := []byte(nil); ; {
		es, next, err := j.List(after, since, 0, 1000)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range es {
			m[e.Key] = e
		}
		if next == nil {
			return m
		}
		if bytes.Equal(next, after) {
			t.Fatal("the list does not go on")
		}
		after = next
	}
}

// TestJournal holds a journal to a naive model, through restarts, compaction
// and torn tails.
func TestJournal(t *testing.T) {
	dir := t.TempDir()
	run := 0
	rapid.Check(t, func(t *rapid.T) {
		run++
		dir := filepath.Join(dir, fmt.Sprint(run))
		j := openJournal(t, dir)
		j.segmentSize = 4000
		defer func() { closeJournal(t, j) }()
		model := make(map[Key]Entry)
		t.Repeat(map[string]func(*rapid.T){
			"append": func(t *rapid.T) {
				var es []Entry
				for range rapid.IntRange(1, 5).Draw(t, "entries") {
					e := entry(rapid.IntRange(0, 12).Draw(t, "n"), rapid.Int64Range(1, 50).Draw(t, "stamp"), rapid.IntRange(0, 800).Draw(t, "size"))
					e.Writer = rapid.SampledFrom([]string{"a", "b"}).Draw(t, "writer")
					e.Result = bytes.Repeat([]byte{e.Writer[0]}, int(e.Stamp)) // one result for each version
					es = append(es, e)
					if old, ok := model[e.Key]; ok {
						e = Merge(old, e)
					}
					model[e.Key] = e
				}
				appendAll(t, j, es...)
			},
			"compact": func(*rapid.T) { j.compact(context.Background()) },
			"restart": func(t *rapid.T) {
				closeJournal(t, j)
				if ids := j.path(j.nextID - 1); rapid.Bool().Draw(t, "torn") {
					tear(t, ids)
				}
				j = openJournal(t, dir)
				j.segmentSize = 4000
				read(j)
			},
			"": func(t *rapid.T) {
				same := func(got, want Entry) bool {
					return got.Stamp == want.Stamp && got.Writer == want.Writer && bytes.Equal(got.Result, want.Result)
				}
				n := rapid.IntRange(0, 12).Draw(t, "look up")
				want, ok := model[key("", n)]
				if e, found, err := j.Get(key("", n)); err != nil || found != ok || !same(e, want) {
					t.Fatalf("%d: %v, %v, %v; want %v", n, e, found, err, want)
				}
				listed := listAll(t, j, 0)
				if len(listed) != len(model) {
					t.Fatalf("%d entries listed, want %d", len(listed), len(model))
				}
				for k, want := range model {
					if !same(listed[k], want) {
						t.Fatalf("%v listed, want %v", listed[k], want)
					}
				}
			},
		})
	})
}

// tear appends the first half of a record, as a killed write leaves it.
func tear(t interface{ Fatal(...any) }, path string) {
	e := entry(99, 1000, 500)
	rec, err := appendRecord(nil, &e)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if os.IsNotExist(err) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(rec[:len(rec)/2]); err != nil {
		t.Fatal(err)
	}
}

func TestJournalSkipsWhatIsCorrupt(t *testing.T) {
	dir := t.TempDir()
	j := openJournal(t, dir)
	for n := range 10 {
		appendAll(t, j, entry(n, 1, 300))
	}
	path := j.path(j.nextID - 1)
	hurt := j.index[tagOf(key("", 4))]
	closeJournal(t, j)
	for _, c := range []struct {
		name string
		at   int64
		with []byte
	}{
		{"a flipped byte of the result", int64(hurt.off) + 200, []byte{0xff}},
		{"a wrong length", int64(hurt.off) + 4, []byte{0xff, 0xff, 1, 0}},
		{"an impossible length", int64(hurt.off) + 4, []byte{0xff, 0xff, 0xff, 0xff}},
		{"no marker", int64(hurt.off), []byte("RxRx")},
	} {
		t.Run(c.name, func(t *testing.T) {
			raw, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			bad := bytes.Clone(raw)
			copy(bad[c.at:], c.with)
			if err := os.WriteFile(filepath.Join(dir, filepath.Base(path)), bad, 0o600); err != nil {
				t.Fatal(err)
			}
			j := openJournal(t, dir)
			defer closeJournal(t, j)
			read(j)
			for n := range 10 {
				e, found, err := j.Get(key("", n))
				if err != nil || found != (n != 4) || found && len(e.Result) != 300 {
					t.Errorf("%d: found %v, %v", n, found, err)
				}
			}
			if n := len(listAll(t, j, 0)); n != 9 {
				t.Errorf("%d entries listed", n)
			}
		})
	}
	t.Run("corrupt after it was read", func(t *testing.T) {
		j := openJournal(t, dir)
		defer closeJournal(t, j)
		read(j)
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt([]byte{0xff}, int64(hurt.off)+200); err != nil {
			t.Fatal(err)
		}
		if _, found, err := j.Get(key("", 4)); found || err == nil {
			t.Fatalf("found %v, %v: it must say that it could not tell", found, err)
		}
		if _, found, err := j.Get(key("", 5)); !found || err != nil {
			t.Fatalf("the next record: found %v, %v", found, err)
		}
	})
}

func TestJournalSaysThatItIsLoading(t *testing.T) {
	dir := t.TempDir()
	j := openJournal(t, dir)
	if j.Loading() {
		t.Fatal("an empty journal is loading")
	}
	appendAll(t, j, entry(1, 5, 10))
	closeJournal(t, j)

	j = openJournal(t, dir)
	defer closeJournal(t, j)
	if !j.Loading() {
		t.Fatal("a journal that was just opened is not loading")
	}
	appendAll(t, j, entry(1, 4, 20), entry(2, 1, 10)) // an older one, before the newer is read
	if e, found, err := j.Get(key("", 2)); !found || err != nil || e.Stamp != 1 {
		t.Fatalf("new entries are not found while it loads: %v, %v", found, err)
	}
	read(j)
	if e, found, _ := j.Get(key("", 1)); j.Loading() || !found || e.Stamp != 5 {
		t.Fatalf("loading %v, found %v, stamp %d", j.Loading(), found, e.Stamp)
	}
}

func TestJournalStaysInItsBudget(t *testing.T) {
	dir := t.TempDir()
	j := openJournal(t, dir)
	defer closeJournal(t, j)
	j.budget, j.segmentSize = 100_000, 10_000
	for n := range 500 {
		appendAll(t, j, entry(n, int64(n), 900))
		if b := j.Stats().Bytes; b > 100_000 {
			t.Fatalf("%d bytes after %d entries", b, n)
		}
	}
	listed := listAll(t, j, 0)
	if len(listed) < 80 || len(listed) != j.Stats().Entries {
		t.Fatalf("%d entries left, %d in the index", len(listed), j.Stats().Entries)
	}
	for n := 500 - len(listed); n < 500; n++ {
		if _, ok := listed[key("", n)]; !ok {
			t.Fatalf("entry %d went before an older one", n)
		}
	}
}

func TestJournalCompactsWhatIsOverwritten(t *testing.T) {
	dir := t.TempDir()
	j := openJournal(t, dir)
	defer closeJournal(t, j)
	j.segmentSize = 10_000
	for stamp := range 50 {
		for n := range 10 {
			appendAll(t, j, entry(n, int64(stamp+1), 500))
		}
	}
	before := j.Stats().Bytes
	// A list that is half way when compaction moves what it has not reached.
	first, next, err := j.List(nil, 0, 0, 2000)
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[Key]bool)
	for _, e := range first {
		seen[e.Key] = true
	}
	j.compact(t.Context())
	if after := j.Stats().Bytes; after > 40_000 || after >= before {
		t.Fatalf("%d bytes, %d before", after, before)
	}
	for next != nil {
		var es []Entry
		if es, next, err = j.List(next, 0, 0, 2000); err != nil {
			t.Fatal(err)
		}
		for _, e := range es {
			seen[e.Key] = true
		}
	}
	if len(seen) != 10 {
		t.Fatalf("%d of 10 entries listed around a compaction", len(seen))
	}
}

func TestJournalListsWhatIsWantedOnly(t *testing.T) {
	j := openJournal(t, t.TempDir())
	defer closeJournal(t, j)
	j.segmentSize = 5000
	for n := range 100 {
		appendAll(t, j, entry(n, int64(n), 500))
	}
	if n := len(listAll(t, j, 70)); n != 30 {
		t.Fatalf("%d entries since 70", n)
	}
	es, next, err := j.List(nil, 0, 50, 10<<20)
	if err != nil || next != nil || len(es) != 100 {
		t.Fatalf("%d entries, next %x, %v", len(es), next, err)
	}
	for _, e := range es {
		if (len(e.Result) > 0) != (e.Stamp >= 50) {
			t.Fatalf("entry of %d has a result of %d bytes", e.Stamp, len(e.Result))
		}
	}
	if _, _, err := j.List([]byte("nonsense"), 0, 0, 1000); err == nil {
		t.Fatal("a malformed cursor was taken")
	}
}

func TestJournalKeepsLargeResults(t *testing.T) {
	j := openJournal(t, t.TempDir())
	defer closeJournal(t, j)
	appendAll(t, j, entry(1, 1, MaxResult), entry(2, 1, 10), entry(3, 1, MaxResult))
	if n := len(listAll(t, j, 0)); n != 3 {
		t.Fatalf("%d entries listed", n)
	}
	if e, found, err := j.Get(key("", 3)); err != nil || !found || len(e.Result) != MaxResult {
		t.Fatalf("found %v, %d bytes, %v", found, len(e.Result), err)
	}
}

func BenchmarkJournalAppend(b *testing.B) {
	j := openJournal(b, b.TempDir())
	defer closeJournal(b, j)
	n := 0
	b.SetBytes(1000)
	for b.Loop() {
		n++
		appendAll(b, j, entry(n, 1, 1000))
	}
}
