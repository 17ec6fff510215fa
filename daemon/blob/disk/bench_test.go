package disk

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/blob/blobtest"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

// variant makes a blob from b that nobody has seen, without the cost of
// random bytes.
func variant(b []byte, n uint64) blob.Blob {
	data := bytes.Clone(b)
	copy(data, strconv.AppendUint(nil, n, 36))
	return blob.Blob{Digest: digest.Of(digest.SHA256, data), Data: data}
}

// BenchmarkPutBatch stores batches of 100; hashing is part of it.
func BenchmarkPutBatch(b *testing.B) {
	for _, size := range []int{1 << 10, 16 << 10} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			s := openDisk(b, Options{Capacity: 2 << 30})
			data := blobtest.Data(1, size)
			var n atomic.Uint64
			b.SetBytes(int64(size) * 100)
			b.RunParallel(func(pb *testing.PB) {
				bs := make([]blob.Blob, 100)
				for pb.Next() {
					for i := range bs {
						bs[i] = variant(data, n.Add(1))
					}
					for _, err := range s.PutBatch(b.Context(), Cached, bs) {
						if err != nil {
							b.Error(err)
							return
						}
					}
				}
			})
			b.ReportMetric(float64(b.N)*100/b.Elapsed().Seconds(), "blobs/s")
		})
	}
}

// BenchmarkPutOne stores blobs of 1 KiB one by one, many at once.
func BenchmarkPutOne(b *testing.B) {
	s := openDisk(b, Options{Capacity: 2 << 30})
	data := blobtest.Data(1, 1<<10)
	var n atomic.Uint64
	b.SetParallelism(32)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := s.PutBatch(b.Context(), Cached, []blob.Blob{variant(data, n.Add(1))})[0]; err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "blobs/s")
}

func BenchmarkPutLarge(b *testing.B) {
	s := openDisk(b, Options{Capacity: 2 << 30})
	data := blobtest.Data(1, 4<<20)
	b.SetBytes(4 << 20)
	for n := uint64(0); b.Loop(); n++ {
		v := variant(data, n)
		if err := s.Put(b.Context(), v.Digest, Cached, bytes.NewReader(v.Data)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkGetBatch(b *testing.B) {
	for _, size := range []int{1 << 10, 16 << 10} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			s := openDisk(b, Options{})
			data := blobtest.Data(1, size)
			var ds []digest.Digest
			for n := range uint64(1000) {
				v := variant(data, n)
				put(b, s.Store, Owned, v)
				ds = append(ds, v.Digest)
			}
			b.SetBytes(int64(size) * 100)
			i := 0
			for b.Loop() {
				for _, r := range s.GetBatch(b.Context(), ds[i:i+100]) {
					if r.Err != nil {
						b.Fatal(r.Err)
					}
				}
				i = (i + 100) % 1000
			}
			b.ReportMetric(float64(b.N)*100/b.Elapsed().Seconds(), "blobs/s")
		})
	}
}

func BenchmarkGetLarge(b *testing.B) {
	s := openDisk(b, Options{})
	v := blobtest.Blob(1, 64<<20)
	put(b, s.Store, Owned, v)
	b.SetBytes(64 << 20)
	for b.Loop() {
		r, err := s.Get(b.Context(), v.Digest, 0)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(onlyWriter{io.Discard}, r); err != nil {
			b.Fatal(err)
		}
		r.Close()
	}
}

// BenchmarkLink lays 10,000 inputs into a directory: with the blobs' files to
// be made first, with all files there, and by link(2) alone.
func BenchmarkLink(b *testing.B) {
	const n = 10_000
	root := b.TempDir()
	s := openDisk(b, Options{Dir: filepath.Join(root, "disk"), Capacity: 4 << 30})
	var ds []digest.Digest
	data := blobtest.Data(1, 2000)
	for i := range uint64(n) {
		v := variant(data, i)
		ds = append(ds, v.Digest)
		if err := s.PutBatch(b.Context(), Owned, []blob.Blob{v})[0]; err != nil {
			b.Fatal(err)
		}
	}
	lay := func(b *testing.B, link func(i int, dst string) error) {
		b.StopTimer()
		dir := filepath.Join(root, "exec")
		os.RemoveAll(dir)
		var dsts []string
		for k := range 100 {
			sub := filepath.Join(dir, strconv.Itoa(k))
			if err := os.MkdirAll(sub, 0o700); err != nil {
				b.Fatal(err)
			}
			for i := range n / 100 {
				dsts = append(dsts, filepath.Join(sub, strconv.Itoa(i)))
			}
		}
		b.StartTimer()
		for i, dst := range dsts {
			if err := link(i, dst); err != nil {
				b.Fatal(err)
			}
		}
	}
	perFile := func(b *testing.B) {
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/file")
	}
	byStore := func(i int, dst string) error { return s.Link(b.Context(), ds[i], false, dst) }
	b.Run("first use", func(b *testing.B) {
		for range b.N {
			b.StopTimer()
			os.RemoveAll(filepath.Join(root, "exec"))
			s.evictVariants(func() bool { return false })
			lay(b, byStore)
		}
		perFile(b)
	})
	b.Run("create and write", func(b *testing.B) {
		for range b.N {
			lay(b, func(_ int, dst string) error { return os.WriteFile(dst, data, 0o444) })
		}
		perFile(b)
	})
	b.Run("known", func(b *testing.B) {
		for range b.N {
			lay(b, byStore)
		}
		perFile(b)
	})
	b.Run("link(2)", func(b *testing.B) {
		for range b.N {
			lay(b, func(i int, dst string) error { return os.Link(s.linkPath(ds[i], false, false), dst) })
		}
		perFile(b)
	})
	os.RemoveAll(filepath.Join(root, "exec"))
}

// BenchmarkLoad reads back the index of a million blobs.
func BenchmarkLoad(b *testing.B) {
	const n = 1_000_000
	o := Options{Dir: b.TempDir(), Capacity: 1 << 40}
	s, err := Open(o)
	if err != nil {
		b.Fatal(err)
	}
	if err := s.load(b.Context()); err != nil {
		b.Fatal(err)
	}
	for i := range uint64(n) {
		d := numbered(digest.SHA256, i)
		s.insert(d, entry{kind: Owned, flags: flagFile})
		if i%100_000 == 0 {
			s.journal.flush()
		}
	}
	if err := s.snapshot(); err != nil {
		b.Fatal(err)
	}
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	// Entries without files are a lie that nobody looks into here.
	for b.Loop() {
		s, err := Open(o)
		if err != nil {
			b.Fatal(err)
		}
		if !s.clean {
			b.Fatal("the end was not clean")
		}
		s.load(b.Context())
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
