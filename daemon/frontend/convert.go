package frontend

import (
	"fmt"
	"strings"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"

	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

// announced are the digest functions of the capabilities, the preferred first.
var announced = [...]digest.Function{digest.SHA256, digest.BLAKE3}

func supported(f digest.Function) bool {
	for _, a := range announced {
		if a == f {
			return true
		}
	}
	return false
}

// decoder reads the digests of one request, which are all of one function.
// Without a function named in the request, the first hash's length tells it.
type decoder struct{ fn digest.Function }

// newDecoder makes the decoder of a request whose field digest_function is v.
func newDecoder(v repb.DigestFunction_Value) (*decoder, error) {
	if v == repb.DigestFunction_UNKNOWN {
		return &decoder{}, nil
	}
	if v < 0 || v > 255 || !supported(digest.Function(v)) {
		return nil, invalid("digest_function", "%s is not supported; SHA256 and BLAKE3 are", v)
	}
	return &decoder{fn: digest.Function(v)}, nil
}

// digest reads p, which stands in the named field.
func (c *decoder) digest(p *repb.Digest, field string) (digest.Digest, error) {
	if p == nil {
		return digest.Digest{}, invalid(field, "is not set")
	}
	if c.fn == 0 {
		fn, ok := digest.Infer(len(p.Hash))
		if !ok {
			return digest.Digest{}, invalid(field, "no digest function has hashes of %d characters", len(p.Hash))
		}
		if !supported(fn) {
			return digest.Digest{}, invalid("digest_function",
				"%s, inferred from the hash in %s, is not supported; SHA256 and BLAKE3 are", strings.ToUpper(fn.String()), field)
		}
		c.fn = fn
	}
	d, err := digest.Parse(c.fn, p.Hash, p.SizeBytes)
	if err != nil {
		return digest.Digest{}, invalid(field, "%s", clip(err.Error()))
	}
	return d, nil
}

// digests reads a whole list.
func (c *decoder) digests(ps []*repb.Digest, field string) ([]digest.Digest, error) {
	ds := make([]digest.Digest, len(ps))
	for i, p := range ps {
		d, err := c.digest(p, field)
		if err != nil {
			// Only now is the element worth its text.
			_, err = c.digest(p, fmt.Sprintf("%s[%d]", field, i))
			return nil, err
		}
		ds[i] = d
	}
	return ds, nil
}

// unique drops repetitions and keeps the order. It reuses ds.
func unique(ds []digest.Digest) []digest.Digest {
	seen := make(map[digest.Digest]struct{}, len(ds))
	kept := ds[:0]
	for _, d := range ds {
		if _, again := seen[d]; !again {
			seen[d] = struct{}{}
			kept = append(kept, d)
		}
	}
	return kept
}

func digestProto(d digest.Digest) *repb.Digest {
	return &repb.Digest{Hash: d.Hash(), SizeBytes: d.Size()}
}

func functionProto(d digest.Digest) repb.DigestFunction_Value {
	return repb.DigestFunction_Value(d.Function())
}

// clip bounds text that quotes a client's input.
func clip(s string) string {
	if len(s) > 2*maxQuote {
		return strings.ToValidUTF8(s[:2*maxQuote], "") + "..."
	}
	return s
}
