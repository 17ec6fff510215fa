package frontend

import (
	"bytes"
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

func TestRecentStaysWithinItsBytesAndKeepsTheLatest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var r recent
		var last blob.Blob
		for i := range rapid.IntRange(1, 400).Draw(t, "blobs") {
			data := bytes.Repeat([]byte(fmt.Sprint(i)), rapid.IntRange(1, blob.SmallSize/4).Draw(t, "size"))
			last = blob.Blob{Digest: digest.Of(digest.SHA256, data), Data: data}
			r.add(last)
		}
		total := 0
		for e := r.byAge.Front(); e != nil; e = e.Next() {
			total += weight(e.Value.(blob.Blob))
		}
		if total != r.bytes || total > recentBytes || len(r.at) != r.byAge.Len() {
			t.Fatalf("%d bytes, counted as %d, in %d of %d", total, r.bytes, len(r.at), r.byAge.Len())
		}
		if got, ok := r.get(last.Digest); len(last.Data) <= blob.SmallSize && (!ok || !bytes.Equal(got, last.Data)) {
			t.Fatal("the latest is forgotten")
		}
	})
}
