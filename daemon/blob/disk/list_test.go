package disk

import (
	"context"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/blob/blobtest"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

func everywhere(uint16) bool { return true }

// listed is what List tells, of all shards.
func (d *testDisk) listed(want func(uint16) bool) (all []Copy) {
	for next := 0; next < partitions; {
		var cs []Copy
		cs, next = d.List(want, next, 7)
		all = append(all, cs...)
	}
	slices.SortFunc(all, ByLastUse)
	return all
}

func TestListsAndPrintsAreOfWhatIsOwned(t *testing.T) {
	a, b := openDisk(t, Options{}), openDisk(t, Options{})
	var own []blob.Blob
	for i := range 50 {
		own = append(own, blobtest.Blob(uint64(i), 100+i))
	}
	for i, err := range a.PutBatch(t.Context(), Owned, own) {
		if err != nil {
			t.Fatal(i, err)
		}
	}
	extra := blobtest.Blob(99, 10)
	a.PutBatch(t.Context(), Cached, []blob.Blob{extra})
	if got := a.listed(everywhere); len(got) != len(own) {
		t.Errorf("%d of %d are listed", len(got), len(own))
	}
	one := own[7].Digest
	if got := a.listed(func(p uint16) bool { return p == one.Prefix() }); len(got) == 0 || !slices.ContainsFunc(got, func(c Copy) bool { return c.Digest == one }) {
		t.Errorf("of one partition: %v", got)
	}
	touches := make([]uint32, len(own))
	for i := range touches {
		touches[i] = uint32(1000 + i)
	}
	for _, err := range b.Restore(t.Context(), own, touches) {
		if err != nil {
			t.Fatal(err)
		}
	}
	got := b.listed(everywhere)
	for i, c := range got {
		if j := len(own) - 1 - i; c.Digest != own[j].Digest || c.Touch != touches[j] {
			t.Fatalf("number %d is %v, last used %d; want %v, %d", i, c.Digest, c.Touch, own[j].Digest, touches[j])
		}
	}
	same := func() bool {
		for p := range partitions {
			if a.Print(uint16(p)) != b.Print(uint16(p)) {
				return false
			}
		}
		return true
	}
	if !same() {
		t.Error("disks that own the same have different prints")
	}
	a.Own(extra.Digest)
	if same() {
		t.Error("one owns a blob more, and nobody can tell")
	}
	a.SetKind(extra.Digest, Cached)
	if !same() {
		t.Error("what is no longer owned still counts")
	}
}

// What is here already, and was used since, is as new as it was.
func TestRestoringDoesNotAge(t *testing.T) {
	d := openDisk(t, Options{})
	b := blobtest.Blob(1, 10)
	d.PutBatch(t.Context(), Cached, []blob.Blob{b})
	used := d.Touched(b.Digest)
	d.Restore(t.Context(), []blob.Blob{b}, []uint32{5})
	if got := d.Touched(b.Digest); got != used {
		t.Errorf("last used at %d, was %d", got, used)
	}
}

func TestHorizonsOutliveTheProcess(t *testing.T) {
	dir := t.TempDir()
	d := openDisk(t, Options{Dir: dir})
	d.PutBatch(t.Context(), Owned, []blob.Blob{blobtest.Blob(1, 10)})
	d.raiseHorizon(7, 100)
	d.raiseHorizon(7, 99)
	d.raiseHorizon(65535, 3)
	d.stop()
	d = openDisk(t, Options{Dir: dir})
	if d.Horizon(7) != 100 || d.Horizon(65535) != 3 || d.Horizon(8) != 0 {
		t.Errorf("horizons are %d, %d, %d", d.Horizon(7), d.Horizon(65535), d.Horizon(8))
	}
	d.stop()
	if err := os.WriteFile(dir+"/"+horizonsName, []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	if d = openDisk(t, Options{Dir: dir}); d.Horizon(7) != 0 {
		t.Error("rubbish is believed")
	}
}

func TestEvictingRaisesTheHorizon(t *testing.T) {
	d := readDisk(t, Options{Capacity: 1 << 20, MinAge: time.Nanosecond})
	b := blobtest.Blob(1, 30<<10)
	d.PutBatch(context.Background(), Owned, []blob.Blob{b})
	d.age(b.Digest, 77)
	d.evictKind(Owned, 100, func() bool { return false })
	if got := d.Horizon(b.Digest.Prefix()); got != 77 {
		t.Errorf("horizon is %d", got)
	}
	if ps := d.Presence([]digest.Digest{b.Digest}, false); ps[0] != Absent {
		t.Error("it was not evicted")
	}
}
