package replica

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

func BenchmarkPutFetch(b *testing.B) {
	for _, size := range []int{1000, 64 << 10, 1 << 20, 16 << 20} {
		b.Run(fmt.Sprint("put/", size), func(b *testing.B) {
			c := newCluster(b, 3, options{})
			b.SetBytes(int64(size))
			b.RunParallel(func(p *testing.PB) {
				data := bytes.Clone(random(size).Data)
				for p.Next() {
					copy(data, fmt.Append(nil, seed.Add(1), " "))
					d := digest.Of(digest.BLAKE3, data)
					if err := c.Put(b.Context(), d, bytes.NewReader(data)); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
		b.Run(fmt.Sprint("get/", size), func(b *testing.B) {
			c := newCluster(b, 3, options{})
			x := random(size)
			if err := c.put(x); err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(size))
			b.RunParallel(func(p *testing.PB) {
				for p.Next() {
					if _, err := readAll(b, c, x.Digest, 0); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
	}
	b.Run("fetch 1000 of 2000 bytes", func(b *testing.B) {
		c := newCluster(b, 3, options{})
		for b.Loop() {
			b.StopTimer()
			var bs []blob.Blob
			var ds []digest.Digest
			for range 1000 {
				x := random(2000)
				bs, ds = append(bs, x), append(ds, x.Digest)
			}
			for _, err := range c.PutBatch(b.Context(), bs) {
				if err != nil {
					b.Fatal(err)
				}
			}
			b.StartTimer()
			if err := c.nodes[0].store.Fetch(b.Context(), ds); err != nil {
				b.Fatal(err)
			}
		}
	})
}
