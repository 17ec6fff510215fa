package frontend

import (
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

const (
	fieldResource = "resource_name"
	fieldInstance = "instance_name"

	maxInstance = 256 // bytes of an instance name
	maxUUID     = 128 // bytes of what stands for the UUID in an upload
	maxResource = 4096
)

// resource is what a ByteStream resource name names.
type resource struct {
	instance string
	uuid     string // of an upload, else empty
	digest   digest.Digest
}

// String is the resource's name in its shortest form.
func (r resource) String() string {
	var b strings.Builder
	if r.instance != "" {
		b.WriteString(r.instance + "/")
	}
	if r.uuid != "" {
		b.WriteString("uploads/" + r.uuid + "/")
	}
	return b.String() + "blobs/" + r.digest.String()
}

// keywords may not be segments of an instance name: that is what makes resource
// names unambiguous.
func keyword(segment string) bool {
	switch segment {
	case "blobs", "uploads", "actions", "actionResults", "operations", "capabilities", "compressed-blobs":
		return true
	}
	return false
}

// checkInstance refuses what cannot be an instance's name.
func checkInstance(name string) error {
	if err := checkSegments(name); err != "" {
		return invalid(fieldInstance, "%s", err)
	}
	return nil
}

func checkSegments(name string) string {
	if name == "" {
		return ""
	}
	if len(name) > maxInstance {
		return "longer than " + strconv.Itoa(maxInstance) + " bytes"
	}
	if !utf8.ValidString(name) || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return quote(name) + " has characters that are not text"
	}
	for s := range strings.SplitSeq(name, "/") {
		if s == "" {
			return quote(name) + " has an empty segment"
		}
		if keyword(s) {
			return quote(name) + " has the reserved segment " + quote(s)
		}
	}
	return ""
}

// parseRead reads {instance/}blobs/{function/}hash/size.
func parseRead(name string) (resource, error) {
	r, rest, err := parseInstance(name)
	if err != nil {
		return resource{}, err
	}
	if rest, err = blobSegment(name, rest); err != nil {
		return resource{}, err
	}
	if rest, err = r.parseDigest(name, rest); err != nil {
		return resource{}, err
	}
	if len(rest) > 0 {
		return resource{}, invalid(fieldResource, "%s has segments after the size", quote(name))
	}
	return r, nil
}

// parseWrite reads {instance/}uploads/{uuid}/blobs/{function/}hash/size{/metadata}.
func parseWrite(name string) (resource, error) {
	r, rest, err := parseInstance(name)
	if err != nil {
		return resource{}, err
	}
	if len(rest) < 2 || rest[0] != "uploads" {
		return resource{}, invalid(fieldResource, "%s names no upload: uploads/{uuid}/blobs/{hash}/{size}", quote(name))
	}
	r.uuid, rest = rest[1], rest[2:]
	if r.uuid == "" || len(r.uuid) > maxUUID || keyword(r.uuid) {
		return resource{}, invalid(fieldResource, "%s has no UUID after uploads", quote(name))
	}
	if rest, err = blobSegment(name, rest); err != nil {
		return resource{}, err
	}
	if _, err = r.parseDigest(name, rest); err != nil { // what follows is the client's own
		return resource{}, err
	}
	return r, nil
}

// parseInstance splits name at its first keyword.
func parseInstance(name string) (r resource, rest []string, err error) {
	if len(name) > maxResource {
		return r, nil, invalid(fieldResource, "longer than %d bytes", maxResource)
	}
	segments := strings.Split(name, "/")
	for i, s := range segments {
		if !keyword(s) {
			continue
		}
		r.instance = strings.Join(segments[:i], "/")
		if i == 1 && r.instance == "" {
			return r, nil, invalid(fieldResource, "%s begins with a slash", quote(name))
		}
		if err := checkSegments(r.instance); err != "" {
			return r, nil, invalid(fieldResource, "instance name %s", err)
		}
		return r, segments[i:], nil
	}
	return r, nil, invalid(fieldResource, "%s names no blob: blobs/{hash}/{size}", quote(name))
}

// blobSegment takes "blobs" off the front. Compressed blobs are not announced,
// so that to name one is an invalid argument, as the API has it for the
// compressors of batches.
func blobSegment(name string, rest []string) ([]string, error) {
	switch {
	case len(rest) > 1 && rest[0] == "compressed-blobs":
		return nil, invalid(fieldResource, "compressed-blobs/%s: compression is not supported", clip(rest[1]))
	case len(rest) == 0 || rest[0] != "blobs":
		return nil, invalid(fieldResource, "%s names no blob: blobs/{hash}/{size}", quote(name))
	}
	return rest[1:], nil
}

// parseDigest takes {function/}hash/size off the front.
func (r *resource) parseDigest(name string, rest []string) ([]string, error) {
	if len(rest) == 0 {
		return nil, invalid(fieldResource, "%s ends before the hash", quote(name))
	}
	fn, named := digest.FunctionByName(rest[0])
	if named {
		rest = rest[1:]
	}
	if len(rest) < 2 {
		return nil, invalid(fieldResource, "%s ends before the size", quote(name))
	}
	if !named {
		var ok bool
		if fn, ok = digest.Infer(len(rest[0])); !ok {
			return nil, invalid(fieldResource, "no digest function has hashes of %d characters", len(rest[0]))
		}
	}
	if !supported(fn) {
		return nil, invalid(fieldResource, "digest_function %s is not supported; SHA256 and BLAKE3 are", strings.ToUpper(fn.String()))
	}
	size, ok := parseSize(rest[1])
	if !ok {
		return nil, invalid(fieldResource, "%s is not a size", quote(rest[1]))
	}
	d, err := digest.Parse(fn, rest[0], size)
	if err != nil {
		return nil, invalid(fieldResource, "%s", clip(err.Error()))
	}
	r.digest = d
	return rest[2:], nil
}

// parseSize accepts just one spelling of each size.
func parseSize(s string) (int64, bool) {
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil && n >= 0 && strconv.FormatInt(n, 10) == s
}
