package cluster

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func drawMember(t *rapid.T) Member {
	text := rapid.StringN(0, 20, 64)
	m := Member{
		ID:      rapid.StringN(1, 30, 80).Draw(t, "id"),
		Name:    text.Draw(t, "name"),
		Boot:    rapid.Int64().Draw(t, "boot"),
		Role:    Role(rapid.Byte().Draw(t, "role")),
		Pool:    text.Draw(t, "pool"),
		Zone:    text.Draw(t, "zone"),
		Addr:    text.Draw(t, "addr"),
		Ops:     text.Draw(t, "ops"),
		Weight:  rapid.Uint32().Draw(t, "weight"),
		State:   State(rapid.Byte().Draw(t, "state")),
		Version: rapid.Uint32().Draw(t, "version"),
	}
	copy(m.Disk[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "disk"))
	return m
}

func TestPackedMembersAreTheSame(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := drawMember(t)
		b, err := m.pack()
		if err != nil {
			t.Fatal(err)
		}
		later := append(b, rapid.SliceOf(rapid.Byte()).Draw(t, "what later versions add")...)
		got, err := unpack(m.ID, later)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(m, got); diff != "" {
			t.Fatal(diff)
		}
		for n := range len(b) {
			if _, err := unpack(m.ID, b[:n]); err == nil {
				t.Fatalf("%d of %d bytes are a member", n, len(b))
			}
		}
	})
}

func TestTooLongMemberNamesTheCulprit(t *testing.T) {
	m := Member{ID: "x", Name: "x", Zone: strings.Repeat("z", 500)}
	if _, err := m.pack(); err == nil || !strings.Contains(err.Error(), "zone") {
		t.Errorf("got %v", err)
	}
	m = Member{ID: "x", Name: "x\xff"}
	if _, err := m.pack(); err == nil || !strings.Contains(err.Error(), "name") {
		t.Errorf("got %v", err)
	}
}

func FuzzUnpack(f *testing.F) {
	m := Member{ID: "w1#1", Name: "w1", Role: Worker, Pool: "default", Addr: "127.0.0.1:8981", Weight: 9, State: Ready}
	b, err := m.pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte{2})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := unpack("x", b)
		if err != nil {
			return
		}
		// Another encoding may be shorter than what was decoded, never longer.
		again, err := m.pack()
		if len(b) <= maxPacked && err != nil {
			t.Fatalf("cannot pack again: %v", err)
		}
		if err != nil {
			return
		}
		if got, err := unpack("x", again); err != nil || got != m {
			t.Fatalf("got %+v, %v", got, err)
		}
	})
}
