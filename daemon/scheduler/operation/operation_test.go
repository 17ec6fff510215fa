package operation_test

import (
	"errors"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/operation"
)

func TestName(t *testing.T) {
	t.Run("what is printed parses to the same", func(t *testing.T) {
		rapid.Check(t, func(t *rapid.T) {
			n := operation.Name{
				Task: operation.Task{
					Key: operation.Key{
						Instance: rapid.SampledFrom([]string{"", "main", "a/b", "operations", "/", "a//b", "ü", "x/operations/y"}).Draw(t, "instance"),
						Scope:    operation.Scope(rapid.String().Draw(t, "scope")),
						Action:   digest.Of(digest.BLAKE3, []byte(rapid.String().Draw(t, "action"))),
					},
					Owner: rapid.StringMatching(`.{1,12}`).Draw(t, "owner"),
					Nonce: rapid.Uint64().Draw(t, "nonce"),
				},
				Op: rapid.Uint64().Draw(t, "op"),
			}
			got, err := operation.Parse(n.String())
			if err != nil || got != n {
				t.Fatalf("%q: got %v, %v", n, got, err)
			}
		})
	})
	t.Run("anything else is refused", func(t *testing.T) {
		good := operation.Name{Task: operation.Task{Owner: "s", Key: operation.Key{Action: digest.Of(digest.SHA256, nil)}}, Op: 1}.String()
		for _, s := range []string{
			"", "x", "operations/x", "/" + good, good + "/", strings.ToUpper(good), good[:len(good)-1],
			strings.Replace(good, "/sha256/", "/sha257/", 1), strings.Replace(good, "/0/", "/00/", 1),
			strings.Replace(good, "/0/", "/-1/", 1), strings.Replace(good, "operations", "operation", 1),
		} {
			if n, err := operation.Parse(s); !errors.Is(err, operation.ErrMalformed) {
				t.Errorf("%q: got %v, %v", s, n, err)
			}
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add(operation.Name{Task: operation.Task{Owner: "s-1", Key: operation.Key{Instance: "a/b", Action: digest.Of(digest.SHA256, nil)}}, Op: 1}.String())
	f.Add("operations//sha256///")
	f.Fuzz(func(t *testing.T, s string) {
		n, err := operation.Parse(s)
		if err == nil && n.String() != s {
			t.Fatalf("%q parses, but prints as %q", s, n)
		}
	})
}
