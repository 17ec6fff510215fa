package match_test

import (
	"testing"

	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/match"
)

type props = []match.Property

func TestPlatform(t *testing.T) {
	linux := match.NewProfile("", map[string][]string{
		"OSFamily": {"Linux"}, "ISA": {"x86-64", "x86-64-v3"}, "memory": {"8Gi"}, "cores": {"4"},
	})
	images := match.NewProfile("images", map[string][]string{"container-image": {"*"}})
	for _, c := range []struct {
		name  string
		ask   props
		w     *match.Profile
		fits  bool
		unmet string // of both profiles
	}{
		{"empty matches the default pool", nil, linux, true, ""},
		{"empty matches no other pool", nil, images, false, ""},
		{"a value that is listed", props{{"ISA", "x86-64"}}, linux, true, ""},
		{"each value must be listed", props{{"ISA", "x86-64"}, {"ISA", "x86-64-v4"}}, linux, false, "ISA=x86-64-v4"},
		{"all values are listed", props{{"ISA", "x86-64-v3"}, {"ISA", "x86-64"}}, linux, true, ""},
		{"ISA regards case", props{{"ISA", "X86-64"}}, linux, false, "ISA=X86-64"},
		{"OSFamily ignores case", props{{"OSFamily", "linux"}}, linux, true, ""},
		{"a resource is at least", props{{"memory", "8589934592"}, {"cores", "2"}}, linux, true, ""},
		{"a resource is not more", props{{"memory", "9Gi"}}, linux, false, "memory=9Gi"},
		{"requests exclude nobody", props{{"dockerNetwork", "off"}, {"cache-silo-key", "x"}, {"InputRootAbsolutePath", "/b"}}, linux, true, ""},
		{"unknown ones match nothing", props{{"gpu", "h100"}}, linux, false, "gpu=h100"},
		{"an image needs a pool that runs them", props{{"container-image", "docker://x"}}, linux, false, ""},
		{"a pool that runs images", props{{"container-image", "docker://x"}}, images, true, ""},
		{"a pool by name", props{{"Pool", "images"}}, images, true, ""},
		{"another pool's name", props{{"Pool", "images"}}, linux, false, ""},
		{"each is had, but not together", props{{"Pool", "images"}, {"ISA", "x86-64"}}, linux, false, "Pool=images"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := match.DefaultRules().Platform(c.ask)
			if got := p.Fits(c.w); got != c.fits {
				t.Errorf("fits: got %v", got)
			}
			q, no := p.Unmet([]*match.Profile{linux, images})
			got := ""
			if no {
				got = q.Name + "=" + q.Value
			}
			if got != c.unmet {
				t.Errorf("unmet: got %q, want %q", got, c.unmet)
			}
		})
	}
	t.Run("order and requests make no other platform", func(t *testing.T) {
		r := match.DefaultRules()
		a := r.Platform(props{{"b", "1"}, {"a", "2"}, {"dockerX", "3"}})
		b := r.Platform(props{{"a", "2"}, {"b", "1"}, {"b", "1"}})
		if a.Key() != b.Key() {
			t.Errorf("%q and %q", a.Key(), b.Key())
		}
	})
}
