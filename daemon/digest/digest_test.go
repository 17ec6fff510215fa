package digest

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"pgregory.net/rapid"
)

func TestFunctionsAreREAPIs(t *testing.T) {
	for value, name := range repb.DigestFunction_Value_name {
		if value == 0 {
			continue
		}
		f := Function(value)
		if !f.Known() {
			t.Errorf("%s (%d) is not known", name, value)
			continue
		}
		if got := strings.ToUpper(f.String()); got != name {
			t.Errorf("function %d is called %s, not %s", value, got, name)
		}
		if back, ok := FunctionByName(f.String()); !ok || back != f {
			t.Errorf("%s is not found by its name", f)
		}
	}
	if Function(0).Known() || Function(len(functions)).Known() {
		t.Error("a function that REAPI does not have is known")
	}
}

func TestOf(t *testing.T) {
	for f, want := range map[Function]string{
		SHA256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad/3",
		SHA1:   "a9993e364706816aba3e25717850c26c9cd0d89d/3",
		MD5:    "900150983cd24fb0d6963f7d28e17f72/3",
		BLAKE3: "blake3/6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85/3",
	} {
		d := Of(f, []byte("abc"))
		if d.String() != want {
			t.Errorf("%s of abc is %s, want %s", f, d, want)
		}
		h := NewHasher(f)
		h.Write([]byte("a"))
		h.Write([]byte("bc"))
		if h.Digest() != d {
			t.Errorf("%s: the hasher says %s", f, h.Digest())
		}
		if back, err := Parse(f, d.Hash(), d.Size()); err != nil || back != d {
			t.Errorf("%s: parsed as %v, %v", f, back, err)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	good := strings.Repeat("0a", 32)
	for name, c := range map[string]struct {
		fn   Function
		hash string
		size int64
	}{
		"unknown function": {0, good, 1},
		"function beyond":  {99, good, 1},
		"short hash":       {SHA256, good[2:], 1},
		"long hash":        {SHA256, good + "00", 1},
		"upper case":       {SHA256, strings.ToUpper(good), 1},
		"not hexadecimal":  {SHA256, "g" + good[1:], 1},
		"a path":           {SHA256, "../" + good[3:], 1},
		"negative size":    {SHA256, good, -1},
		"empty":            {SHA256, "", 0},
	} {
		if d, err := Parse(c.fn, c.hash, c.size); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v, %v", name, d, err)
		}
	}
}

func TestIsEmpty(t *testing.T) {
	if !Of(SHA256, nil).IsEmpty() || !Of(BLAKE3, nil).IsEmpty() {
		t.Error("the empty blob is not known as such")
	}
	other, _ := Parse(SHA256, strings.Repeat("00", 32), 0)
	if other.IsEmpty() || (Digest{}).IsEmpty() || Of(SHA256, []byte("x")).IsEmpty() {
		t.Error("something else is taken for the empty blob")
	}
}

func TestInfer(t *testing.T) {
	for n, want := range map[int]Function{64: SHA256, 40: SHA1, 32: MD5, 96: SHA384, 128: SHA512, 66: VSO} {
		if f, ok := Infer(n); !ok || f != want {
			t.Errorf("%d characters: %s, %v", n, f, ok)
		}
	}
	if f, ok := Infer(63); ok {
		t.Errorf("63 characters are taken for %s", f)
	}
}

func drawDigest(t *rapid.T, label string) Digest {
	fn := Function(rapid.IntRange(1, len(functions)-1).Draw(t, label+" function"))
	hash := rapid.SliceOfN(rapid.Byte(), fn.HashSize(), fn.HashSize()).Draw(t, label+" hash")
	d, err := New(fn, hash, rapid.Int64Range(0, 1<<62).Draw(t, label+" size"))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestPackRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ds := rapid.SliceOf(rapid.Custom(func(t *rapid.T) Digest { return drawDigest(t, "d") })).Draw(t, "ds")
		got, err := Unpack(Pack(ds))
		if err != nil || !slices.Equal(got, ds) {
			t.Fatalf("%v, %v", got, err)
		}
	})
}

func TestCompareIsAnOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := drawDigest(t, "a"), drawDigest(t, "b")
		if (a.Compare(b) == 0) != (a == b) || a.Compare(b) > 0 != (b.Compare(a) < 0) {
			t.Fatalf("%v %v", a, b)
		}
	})
}

func FuzzUnpack(f *testing.F) {
	f.Add(Pack([]Digest{Of(SHA256, nil), Of(BLAKE3, []byte("x"))}))
	f.Add([]byte{1})
	f.Fuzz(func(t *testing.T, b []byte) {
		ds, err := Unpack(b)
		if err != nil {
			return
		}
		again, err := Unpack(Pack(ds))
		if err != nil || !slices.Equal(again, ds) {
			t.Fatalf("%v, %v", again, err)
		}
		for _, d := range ds {
			if back, err := Parse(d.Function(), d.Hash(), d.Size()); err != nil || back != d {
				t.Fatalf("%v does not parse back: %v", d, err)
			}
			if !bytes.Equal(d.HashBytes(), d.AppendHash(nil)) {
				t.Fatal("two forms of one hash")
			}
		}
	})
}
