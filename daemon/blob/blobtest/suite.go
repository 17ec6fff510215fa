// Package blobtest holds the contract of blob.Store as a test suite, which
// every store's own tests run.
package blobtest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

// Data makes n bytes that differ for each seed, and from one page to the next.
// Random bytes throughout would cost the race detector more than the tests.
func Data(seed uint64, n int) []byte {
	const page = 4096
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	b := make([]byte, n)
	rand.NewChaCha8(key).Read(b[:min(n, page)])
	for at := page; at < n; at += page {
		copy(b[at:], b[:page])
		if at+8 <= n {
			binary.LittleEndian.PutUint64(b[at:], uint64(at))
		}
	}
	return b
}

// Blob makes a blob of n bytes and its name.
func Blob(seed uint64, n int) blob.Blob {
	b := Data(seed, n)
	return blob.Blob{Digest: digest.Of(digest.SHA256, b), Data: b}
}

// sizes are those where stores change what they do.
var sizes = []int{
	0, 1, 100, 4096,
	blob.SmallSize - 1, blob.SmallSize, blob.SmallSize + 1,
	1 << 20, 1<<20 + 1, 2<<20 + 12345,
}

// Suite tests the whole contract. open returns an empty store, whose end is
// the test's.
func Suite(t *testing.T, open func(t *testing.T) blob.Store) {
	for _, c := range []struct {
		name string
		test func(*testing.T, blob.Store)
	}{
		{"what is put is got", testPutGet},
		{"a batch is answered in its order", testBatch},
		{"any offset can be read from", testOffsets},
		{"an absent blob is not found, and nothing else is", testAbsent},
		{"wrong bytes are refused and nothing is stored", testMismatch},
		{"a failing source stores nothing", testFailingSource},
		{"the empty blob is always there", testEmpty},
		{"missing are those that are not there", testMissing},
		{"putting again is no error", testAgain},
		{"every computable function names blobs", testFunctions},
		{"an ended context ends a call", testContext},
		{"everything may happen at once", testConcurrent},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, open(t)) })
	}
}

func mustPut(t *testing.T, s blob.Store, b blob.Blob) {
	t.Helper()
	if err := s.Put(t.Context(), b.Digest, bytes.NewReader(b.Data)); err != nil {
		t.Fatalf("put %s: %v", b.Digest, err)
	}
}

func read(ctx context.Context, s blob.Getter, d digest.Digest, off int64) ([]byte, error) {
	r, err := s.Get(ctx, d, off)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(r)
	return data, errors.Join(err, r.Close())
}

func wantBlob(t *testing.T, s blob.Getter, b blob.Blob) {
	t.Helper()
	got, err := read(t.Context(), s, b.Digest, 0)
	if err != nil {
		t.Errorf("get %s: %v", b.Digest, err)
	} else if !bytes.Equal(got, b.Data) {
		t.Errorf("get %s: other bytes", b.Digest)
	}
}

func wantAbsent(t *testing.T, s blob.Store, d digest.Digest) {
	t.Helper()
	if _, err := read(t.Context(), s, d, 0); !blob.IsNotFound(err) {
		t.Errorf("get %s: %v, want not found", d, err)
	}
	missing, err := s.Missing(t.Context(), []digest.Digest{d})
	if err != nil || len(missing) != 1 {
		t.Errorf("missing %s: %v, %v, want it", d, missing, err)
	}
}

func testPutGet(t *testing.T, s blob.Store) {
	for i, n := range sizes {
		b := Blob(uint64(i), n)
		mustPut(t, s, b)
		wantBlob(t, s, b)
	}
	for i, n := range sizes[:7] {
		b := Blob(100+uint64(i), n)
		r := iotest.OneByteReader(iotest.DataErrReader(bytes.NewReader(b.Data)))
		if err := s.Put(t.Context(), b.Digest, r); err != nil {
			t.Errorf("put %d bytes one by one: %v", n, err)
		}
		wantBlob(t, s, b)
	}
}

func testBatch(t *testing.T, s blob.Store) {
	var bs []blob.Blob
	var ds []digest.Digest
	for i := range 300 {
		b := Blob(uint64(i), i*217%blob.SmallSize)
		bs, ds = append(bs, b), append(ds, b.Digest)
	}
	bs = append(bs, bs[7]) // twice in a batch
	bad := Blob(1000, 50)
	bad.Data = Data(1001, 50)
	bs = append(bs, bad)
	errs := s.PutBatch(t.Context(), bs)
	if len(errs) != len(bs) {
		t.Fatalf("%d answers for %d blobs", len(errs), len(bs))
	}
	for i, err := range errs[:len(bs)-1] {
		if err != nil {
			t.Errorf("put %d: %v", i, err)
		}
	}
	if err := errs[len(bs)-1]; !errors.Is(err, blob.ErrMismatch) {
		t.Errorf("put of wrong bytes: %v", err)
	}
	ds = append(ds, bad.Digest)
	rs := s.GetBatch(t.Context(), ds)
	if len(rs) != len(ds) {
		t.Fatalf("%d answers for %d digests", len(rs), len(ds))
	}
	for i, r := range rs[:len(ds)-1] {
		if r.Err != nil || !bytes.Equal(r.Data, bs[i].Data) {
			t.Errorf("get %d: %d bytes, %v", i, len(r.Data), r.Err)
		}
	}
	if err := rs[len(ds)-1].Err; !blob.IsNotFound(err) {
		t.Errorf("get of what was refused: %v", err)
	}
}

func testOffsets(t *testing.T, s blob.Store) {
	for i, n := range sizes {
		b := Blob(uint64(i), n)
		mustPut(t, s, b)
		for _, off := range []int{0, 1, n / 2, n - 1, n, 1<<20 - 1, 1 << 20, 1<<20 + 1} {
			if off < 0 || off > n {
				continue
			}
			got, err := read(t.Context(), s, b.Digest, int64(off))
			if err != nil || !bytes.Equal(got, b.Data[off:]) {
				t.Errorf("%d bytes from %d: %d bytes, %v", n, off, len(got), err)
			}
		}
		for _, off := range []int64{-1, int64(n) + 1} {
			if _, err := read(t.Context(), s, b.Digest, off); !errors.Is(err, blob.ErrOutOfRange) {
				t.Errorf("%d bytes from %d: %v, want out of range", n, off, err)
			}
		}
	}
}

func testAbsent(t *testing.T, s blob.Store) {
	mustPut(t, s, Blob(1, 10))
	wantAbsent(t, s, Blob(2, 10).Digest)
	wantAbsent(t, s, Blob(2, blob.SmallSize+1).Digest)
	// The right hash under another size is another blob.
	here := Blob(1, 10).Digest
	other, err := digest.New(here.Function(), here.HashBytes(), 11)
	if err != nil {
		t.Fatal(err)
	}
	wantAbsent(t, s, other)
}

func testMismatch(t *testing.T, s blob.Store) {
	for i, n := range sizes {
		b := Blob(uint64(i), n)
		wrong := append(Data(uint64(i)+500, n), 'x')
		for what, data := range map[string][]byte{"other": wrong[:n], "more": append(b.Data[:n:n], 'x'), "fewer": b.Data[:max(n-1, 0)]} {
			if bytes.Equal(data, b.Data) {
				continue
			}
			if err := s.Put(t.Context(), b.Digest, bytes.NewReader(data)); !errors.Is(err, blob.ErrMismatch) {
				t.Errorf("put %d bytes, %s: %v, want a mismatch", n, what, err)
			}
		}
		if n > 0 {
			wantAbsent(t, s, b.Digest)
		}
	}
}

func testFailingSource(t *testing.T, s blob.Store) {
	broken := errors.New("cable cut")
	for i, n := range sizes[1:] {
		b := Blob(uint64(i), n)
		r := io.MultiReader(bytes.NewReader(b.Data[:n/2]), iotest.ErrReader(broken))
		if err := s.Put(t.Context(), b.Digest, r); !errors.Is(err, broken) {
			t.Errorf("put: %v, want %v", err, broken)
		}
		wantAbsent(t, s, b.Digest)
	}
}

func testEmpty(t *testing.T, s blob.Store) {
	for _, fn := range []digest.Function{digest.SHA256, digest.BLAKE3} {
		d := digest.Empty(fn)
		wantBlob(t, s, blob.Blob{Digest: d})
		if r := s.GetBatch(t.Context(), []digest.Digest{d}); r[0].Err != nil || len(r[0].Data) != 0 {
			t.Errorf("get batch: %v", r[0])
		}
		if missing, err := s.Missing(t.Context(), []digest.Digest{d}); err != nil || len(missing) != 0 {
			t.Errorf("missing: %v, %v", missing, err)
		}
		mustPut(t, s, blob.Blob{Digest: d})
	}
}

func testMissing(t *testing.T, s blob.Store) {
	var all, want []digest.Digest
	for i := range 100 {
		b := Blob(uint64(i), 10+i)
		all = append(all, b.Digest)
		if i%3 == 0 {
			mustPut(t, s, b)
		} else {
			want = append(want, b.Digest)
		}
	}
	got, err := s.Missing(t.Context(), all)
	if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("missing: %v, %v\nwant %v", got, err, want)
	}
	if got, err := s.Missing(t.Context(), nil); err != nil || len(got) != 0 {
		t.Errorf("missing of nothing: %v, %v", got, err)
	}
}

func testAgain(t *testing.T, s blob.Store) {
	for i, n := range sizes {
		b := Blob(uint64(i), n)
		for range 3 {
			mustPut(t, s, b)
		}
		wantBlob(t, s, b)
	}
}

func testFunctions(t *testing.T, s blob.Store) {
	for fn := digest.SHA256; fn.Known(); fn++ {
		if !fn.Computable() {
			continue
		}
		for i, n := range []int{1, 1000, blob.SmallSize + 1, 2<<20 + 1} {
			data := Data(uint64(i), n)
			b := blob.Blob{Digest: digest.Of(fn, data), Data: data}
			mustPut(t, s, b)
			wantBlob(t, s, b)
		}
	}
}

func testContext(t *testing.T, s blob.Store) {
	b := Blob(1, 3<<20)
	mustPut(t, s, b)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := read(ctx, s, b.Digest, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("get: %v", err)
	}
	c := Blob(2, 100)
	if err := s.Put(ctx, c.Digest, bytes.NewReader(c.Data)); !errors.Is(err, context.Canceled) {
		t.Errorf("put: %v", err)
	}
	if r := s.GetBatch(ctx, []digest.Digest{b.Digest}); !errors.Is(r[0].Err, context.Canceled) {
		t.Errorf("get batch: %v", r[0].Err)
	}
	if errs := s.PutBatch(ctx, []blob.Blob{c}); !errors.Is(errs[0], context.Canceled) {
		t.Errorf("put batch: %v", errs[0])
	}
}

func testConcurrent(t *testing.T, s blob.Store) {
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 40 {
				// Half of the blobs are everybody's.
				seed, n := uint64(i), 100+i*50
				if i%2 == 0 {
					seed += uint64(w) * 1000
				}
				if i%10 == 0 {
					n += blob.SmallSize
				}
				b := Blob(seed, n)
				if i%3 == 0 {
					if errs := s.PutBatch(t.Context(), []blob.Blob{b}); n <= blob.SmallSize && errs[0] != nil {
						t.Errorf("put batch: %v", errs[0])
					}
				}
				if err := s.Put(t.Context(), b.Digest, bytes.NewReader(b.Data)); err != nil {
					t.Errorf("put: %v", err)
				}
				wantBlob(t, s, b)
				if m, err := s.Missing(t.Context(), []digest.Digest{b.Digest}); err != nil || len(m) != 0 {
					t.Errorf("missing: %v, %v", m, err)
				}
			}
		})
	}
	wg.Wait()
}
