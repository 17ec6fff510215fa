package frontend

import (
	"context"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"google.golang.org/protobuf/proto"

	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

// hints are what a client wants inlined.
type hints struct {
	stdout, stderr bool
	files          []string
}

// inlineField is one place in a result for inline data.
type inlineField struct {
	data   *[]byte
	digest *repb.Digest
	wanted bool
}

// inlineFields lists r's, the most wanted first.
func inlineFields(r *repb.ActionResult, h hints) []inlineField {
	fields := []inlineField{
		{&r.StdoutRaw, r.StdoutDigest, h.stdout},
		{&r.StderrRaw, r.StderrDigest, h.stderr},
	}
	wanted := make(map[string]struct{}, len(h.files))
	for _, path := range h.files {
		wanted[path] = struct{}{}
	}
	for _, file := range r.OutputFiles {
		_, want := wanted[file.Path]
		fields = append(fields, inlineField{&file.Contents, file.Digest, want})
	}
	return fields
}

// inline makes r carry the inline data that the client asked for, as far as it
// fits into room bytes, and no other unless it exists nowhere else. It reports
// whether r fits. What cannot be read is left out: the client has its digest. r
// is charged to h, unless that is nil, where nothing may be asked for.
func (f *Frontend) inline(ctx context.Context, h *held, fn digest.Function, r *repb.ActionResult, wants hints, room int) bool {
	fields := inlineFields(r, wants)
	for _, x := range fields {
		if !x.wanted && x.digest != nil {
			*x.data = nil
		}
	}
	dec := &decoder{fn: fn}
	size := proto.Size(r)
	left := room - size
	var ds []digest.Digest
	var into []*[]byte
	total := int64(size)
	for _, x := range fields {
		if !x.wanted || len(*x.data) > 0 || x.digest.GetSizeBytes() <= 0 {
			continue
		}
		d, err := dec.digest(x.digest, "digest")
		if need := d.Size() + 8; err == nil && need <= int64(left) {
			left -= int(need)
			total += d.Size()
			ds, into = append(ds, d), append(into, x.data)
		}
	}
	if h != nil && h.n == 0 && total > smallAnswer && h.take(total) != nil {
		return left >= 0 // nobody waits for it any more
	}
	if len(ds) > 0 {
		for i, res := range f.readAll(ctx, ds) {
			if res.Err == nil {
				*into[i] = res.Data
			}
		}
	}
	size = proto.Size(r) // measured once: a result may have tens of thousands of files
	for i := len(fields) - 1; i >= 0 && size > room; i-- {
		if fields[i].digest != nil {
			size -= len(*fields[i].data)
			*fields[i].data = nil
		}
	}
	if h != nil && h.n > 0 {
		h.set(int64(size))
	}
	return size <= room
}
