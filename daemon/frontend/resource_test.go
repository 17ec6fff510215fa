package frontend

import (
	"strings"
	"testing"

	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

func TestResourceNames(t *testing.T) {
	d := digest.Of(digest.SHA256, []byte("x"))
	b := digest.Of(digest.BLAKE3, []byte("x"))
	for name, want := range map[string]resource{
		"blobs/" + d.String():                              {digest: d},
		"blobs/sha256/" + d.String():                       {digest: d},
		"blobs/" + b.String():                              {digest: b},
		"i/blobs/" + d.String():                            {instance: "i", digest: d},
		"i/j.k/l/blobs/" + b.String():                      {instance: "i/j.k/l", digest: b},
		"uploads/u/blobs/" + d.String():                    {uuid: "u", digest: d},
		"i/j/uploads/u/blobs/" + b.String():                {instance: "i/j", uuid: "u", digest: b},
		"uploads/u/blobs/" + d.String() + "/meta/blobs/x/": {uuid: "u", digest: d},
	} {
		parse := parseRead
		if want.uuid != "" {
			parse = parseWrite
		}
		if got, err := parse(name); err != nil || got != want {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	for _, name := range []string{
		"", "/", "blobs", "blobs/", "blobs//1", "/blobs/" + d.String(), "i//blobs/" + d.String(), "i/actions/blobs/" + d.String(),
		"blobs/" + d.String() + "/", "blobs/" + d.String() + "/x", "blobs/" + d.Hash() + "/01", "blobs/" + d.Hash() + "/+1",
		"blobs/" + d.Hash() + "/9223372036854775808", "blobs/md5/" + strings.Repeat("a", 32) + "/1",
		"compressed-blobs/zstd/" + d.String(), "uploads/u/blobs/" + d.String(), strings.Repeat("a/", 3000) + "blobs/" + d.String(),
	} {
		if got, err := parseRead(name); err == nil {
			t.Errorf("%q read as %v", name, got)
		}
	}
	for _, name := range []string{"uploads//blobs/" + d.String(), "uploads/blobs/" + d.String(), "uploads", "uploads/u", "uploads/u/blobs"} {
		if got, err := parseWrite(name); err == nil {
			t.Errorf("%q read as %v", name, got)
		}
	}
}

func FuzzResourceName(f *testing.F) {
	d := digest.Of(digest.SHA256, []byte("x"))
	f.Add("blobs/" + d.String())
	f.Add("i/uploads/u/blobs/blake3/" + d.String() + "/meta")
	f.Add("a/b/compressed-blobs/zstd/" + d.String())
	f.Fuzz(func(t *testing.T, name string) {
		for _, parse := range []func(string) (resource, error){parseRead, parseWrite} {
			r, err := parse(name)
			if err != nil {
				continue
			}
			if again, err := parse(r.String()); err != nil || again != r {
				t.Fatalf("%q is %v, and again %v, %v", name, r, again, err)
			}
			if checkInstance(r.instance) != nil {
				t.Fatalf("%q has the instance %q", name, r.instance)
			}
		}
	})
}
