package actioncache

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func key(instance string, n int) Key {
	return Key{Instance: instance, Action: digest.Of(digest.SHA256, fmt.Append(nil, n))}
}

// drawEntry draws entries that are often alike, so that ties are met.
func drawEntry(t *rapid.T, label string) Entry {
	return Entry{
		Key:    key("", 1),
		Stamp:  rapid.Int64Range(1, 3).Draw(t, label+" stamp"),
		Writer: rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, label+" writer"),
		Result: []byte(rapid.SampledFrom([]string{"", "x", "y"}).Draw(t, label+" result")),
	}
}

func TestMergeLaws(t *testing.T) {
	same := func(t *rapid.T, law string, a, b Entry) {
		if diff := cmp.Diff(a, b, cmp.Comparer(func(a, b digest.Digest) bool { return a == b })); diff != "" {
			t.Fatalf("%s:\n%s", law, diff)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := drawEntry(t, "a"), drawEntry(t, "b"), drawEntry(t, "c")
		same(t, "commutative", Merge(a, b), Merge(b, a))
		same(t, "associative", Merge(a, Merge(b, c)), Merge(Merge(a, b), c))
		same(t, "idempotent", Merge(a, a), a)
		if m := Merge(a, b); m.Stamp < max(a.Stamp, b.Stamp) {
			t.Fatal("the earlier entry won")
		}
	})
}

// Memory merges as Merge does, in whatever order entries come.
func TestMemoryMerges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		es := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Entry { return drawEntry(t, "e") }), 1, 6).Draw(t, "entries")
		m, want := NewMemory(0), es[0]
		for _, e := range es {
			if rapid.Bool().Draw(t, "load") {
				m.Load(e)
			} else {
				m.Put(e)
			}
			want = Merge(want, e)
		}
		got, found, _ := m.Lookup(es[0].Key)
		if !found || got.Stamp != want.Stamp || got.Writer != want.Writer || string(got.Result) != string(want.Result) {
			t.Fatalf("memory has %v, want %v", got, want)
		}
	})
}

func TestClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c Clock
		start := time.Now().UnixNano()
		if a, b := c.Next(), c.Next(); a != start || b != start+1 {
			t.Fatalf("stamps %d and %d at %d", a, b, start)
		}
		ahead := start + int64(59*time.Second)
		if err := c.Observe(ahead); err != nil {
			t.Fatal(err)
		}
		if got := c.Next(); got != ahead+1 {
			t.Fatalf("having seen %d, the clock stamps %d", ahead, got)
		}
		if err := c.Observe(start + int64(61*time.Second)); !errors.Is(err, ErrAhead) {
			t.Fatalf("a stamp 61 s ahead: %v", err)
		}
		time.Sleep(2 * time.Minute)
		if got := c.Next(); got != time.Now().UnixNano() {
			t.Fatal("the clock does not follow the time again")
		}
	})
}

func TestInstancesReadTheirAncestors(t *testing.T) {
	for instance, want := range map[string][]string{
		"":      {""},
		"a":     {"a"},
		"a.b.c": {"a.b.c", "a.b", "a"},
		".a":    {".a"},
		"a..b":  {"a..b", "a.", "a"},
	} {
		var got []string
		for _, k := range key(instance, 1).line() {
			got = append(got, k.Instance)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q (-want +got):\n%s", instance, diff)
		}
	}
}

func TestKeysPack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		fn := digest.Function(rapid.IntRange(1, 10).Draw(t, "function"))
		hash := rapid.SliceOfN(rapid.Byte(), fn.HashSize(), fn.HashSize()).Draw(t, "hash")
		d, err := digest.New(fn, hash, rapid.Int64Range(0, 1<<40).Draw(t, "size"))
		if err != nil {
			t.Fatal(err)
		}
		k := Key{Instance: rapid.String().Draw(t, "instance"), Action: d}
		if got, err := unpackKey(k.pack()); err != nil || got != k {
			t.Fatalf("%v became %v, %v", k, got, err)
		}
	})
}
