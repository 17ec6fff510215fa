package frontend_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"testing"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

func TestCapabilities(t *testing.T) {
	w := start(t)
	c, err := repb.NewCapabilitiesClient(w.conn).GetCapabilities(t.Context(), &repb.GetCapabilitiesRequest{InstanceName: "a/b"})
	if err != nil {
		t.Fatal(err)
	}
	both := []repb.DigestFunction_Value{repb.DigestFunction_SHA256, repb.DigestFunction_BLAKE3}
	if diff := cmp.Diff(both, c.CacheCapabilities.DigestFunctions); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(both, c.ExecutionCapabilities.DigestFunctions); diff != "" {
		t.Error(diff)
	}
	if c.LowApiVersion.Minor != 0 || c.DeprecatedApiVersion.Minor != 0 || c.HighApiVersion.Minor != 12 || c.HighApiVersion.Major != 2 {
		t.Errorf("versions %v %v %v", c.DeprecatedApiVersion, c.LowApiVersion, c.HighApiVersion)
	}
	if got := c.CacheCapabilities.MaxBatchTotalSizeBytes; got != 4<<20-64<<10 {
		t.Errorf("batch of %d", got)
	}
	if !c.ExecutionCapabilities.ExecEnabled || !c.CacheCapabilities.ActionCacheUpdateCapabilities.UpdateEnabled ||
		c.CacheCapabilities.SymlinkAbsolutePathStrategy != repb.SymlinkAbsolutePathStrategy_ALLOWED {
		t.Errorf("capabilities %v", c)
	}
	if c.CacheCapabilities.SplitBlobSupport || c.CacheCapabilities.SpliceBlobSupport || len(c.CacheCapabilities.SupportedCompressors) > 0 {
		t.Errorf("announces what it has not: %v", c)
	}
}

func TestFindMissingBlobs(t *testing.T) {
	w := start(t)
	have, empty := w.store.Add([]byte("have")), digest.Empty(digest.SHA256)
	req := &repb.FindMissingBlobsRequest{BlobDigests: []*repb.Digest{
		wire(sha("x")), wire(have), wire(sha("y")), wire(sha("x")), wire(empty),
	}}
	resp, err := w.cas().FindMissingBlobs(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	want := &repb.FindMissingBlobsResponse{MissingBlobDigests: []*repb.Digest{wire(sha("x")), wire(sha("y"))}}
	if diff := cmp.Diff(want, resp, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	if n := w.store.LargestMissing(); n != 4 {
		t.Errorf("asked for %d digests, want each of 4 once", n)
	}

	t.Run("takes ten thousand digests", func(t *testing.T) {
		req := &repb.FindMissingBlobsRequest{}
		for i := range 10_000 {
			req.BlobDigests = append(req.BlobDigests, wire(sha(fmt.Sprint(i))))
		}
		resp, err := w.cas().FindMissingBlobs(t.Context(), req)
		if err != nil || len(resp.MissingBlobDigests) != 10_000 {
			t.Fatal(len(resp.GetMissingBlobDigests()), err)
		}
	})
	t.Run("tells that it cannot tell", func(t *testing.T) {
		w.store.Fail(fmt.Errorf("ask disk: %w", blob.ErrUnavailable))
		defer w.store.Fail(nil)
		_, err := w.cas().FindMissingBlobs(t.Context(), req)
		wantCode(t, err, codes.Unavailable)
	})
	t.Run("keeps digest functions apart", func(t *testing.T) {
		b3 := digest.Of(digest.BLAKE3, []byte("have"))
		resp, err := w.cas().FindMissingBlobs(t.Context(), &repb.FindMissingBlobsRequest{
			BlobDigests: []*repb.Digest{wire(b3)}, DigestFunction: repb.DigestFunction_BLAKE3,
		})
		if err != nil || len(resp.MissingBlobDigests) != 1 {
			t.Fatal(resp, err)
		}
	})
}

func TestMalformedDigestsAreRefused(t *testing.T) {
	w := start(t)
	good := wire(sha("x"))
	for name, c := range map[string]struct {
		d     *repb.Digest
		fn    repb.DigestFunction_Value
		field string
	}{
		"not set":                 {nil, 0, "blob_digests[1]"},
		"short hash":              {&repb.Digest{Hash: "abc"}, 0, "blob_digests[1]"},
		"upper case":              {&repb.Digest{Hash: strings.ToUpper(good.Hash)}, 0, "blob_digests[1]"},
		"not hexadecimal":         {&repb.Digest{Hash: strings.Repeat("z", 64)}, 0, "blob_digests[1]"},
		"negative size":           {&repb.Digest{Hash: good.Hash, SizeBytes: -1}, 0, "blob_digests[1]"},
		"another function's hash": {&repb.Digest{Hash: strings.Repeat("a", 40)}, 0, "blob_digests[1]"},
		"unsupported function":    {good, repb.DigestFunction_SHA1, "digest_function"},
		"unknown function":        {good, 99, "digest_function"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := w.cas().FindMissingBlobs(t.Context(), &repb.FindMissingBlobsRequest{
				BlobDigests: []*repb.Digest{good, c.d}, DigestFunction: c.fn,
			})
			wantInvalid(t, err, c.field)
		})
	}
	t.Run("function inferred and unsupported", func(t *testing.T) {
		_, err := w.cas().FindMissingBlobs(t.Context(), &repb.FindMissingBlobsRequest{
			BlobDigests: []*repb.Digest{{Hash: strings.Repeat("a", 40)}},
		})
		wantInvalid(t, err, "digest_function")
	})
	t.Run("too many", func(t *testing.T) {
		ds := make([]*repb.Digest, 50_001)
		for i := range ds {
			ds[i] = good
		}
		_, err := w.cas().FindMissingBlobs(t.Context(), &repb.FindMissingBlobsRequest{BlobDigests: ds})
		wantInvalid(t, err, "blob_digests")
	})
}

func TestInstanceNamesAreChecked(t *testing.T) {
	w := start(t)
	for _, name := range []string{"/a", "a/", "a//b", "a/blobs", "operations", "a\x00b", strings.Repeat("a", 257)} {
		_, err := w.cas().FindMissingBlobs(t.Context(), &repb.FindMissingBlobsRequest{InstanceName: name})
		wantInvalid(t, err, "instance_name")
	}
	if _, err := w.cas().FindMissingBlobs(t.Context(), &repb.FindMissingBlobsRequest{InstanceName: "team.ci/main"}); err != nil {
		t.Error(err)
	}
}

func TestBatchUpdateBlobs(t *testing.T) {
	w := start(t)
	large := bytes.Repeat([]byte("large"), 40<<10)
	resp, err := w.cas().BatchUpdateBlobs(t.Context(), &repb.BatchUpdateBlobsRequest{Requests: []*repb.BatchUpdateBlobsRequest_Request{
		{Digest: wire(sha("good")), Data: []byte("good")},
		{Digest: wire(sha("good")), Data: []byte("evil")},
		{Digest: wire(sha("size")), Data: []byte("siz")},
		{Digest: &repb.Digest{Hash: "abc"}, Data: []byte("abc")},
		{Digest: wire(sha("zstd")), Data: []byte("zstd"), Compressor: repb.Compressor_ZSTD},
		{Digest: wire(sha(string(large))), Data: large},
		{Digest: wire(sha("good")), Data: []byte("good")},
		{Digest: wire(sha("evil twin")), Data: []byte("nice twin")},
		nil,
	}})
	if err != nil {
		t.Fatal(err)
	}
	if !w.store.Has(sha("good")) || !w.store.Has(sha(string(large))) || w.store.Has(sha("evil twin")) {
		t.Error("stored the wrong blobs")
	}
	for i, want := range []struct {
		code  codes.Code
		field string
	}{
		{codes.OK, ""},
		{codes.OK, ""},
		{codes.InvalidArgument, "requests[2].data"},
		{codes.InvalidArgument, "requests[3].digest"},
		{codes.InvalidArgument, "requests[4].compressor"},
		{codes.OK, ""},
		{codes.OK, ""},
		{codes.InvalidArgument, ""},
		{codes.InvalidArgument, "requests[8].digest"},
	} {
		err := status.ErrorProto(resp.Responses[i].Status)
		if want.field != "" {
			wantInvalid(t, err, want.field)
		} else if status.Code(err) != want.code {
			t.Errorf("blob %d: %v, want %v", i, err, want.code)
		}
	}
	if diff := cmp.Diff(wire(sha("zstd")), resp.Responses[4].Digest, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}

	t.Run("more than announced", func(t *testing.T) {
		data := make([]byte, 4<<20-64<<10+1)
		_, err := w.cas().BatchUpdateBlobs(t.Context(), &repb.BatchUpdateBlobsRequest{Requests: []*repb.BatchUpdateBlobsRequest_Request{
			{Digest: wire(sha(string(data))), Data: data},
		}})
		wantInvalid(t, err, "requests")
	})
	t.Run("no room", func(t *testing.T) {
		w.store.Fail(blob.ErrFull)
		defer w.store.Fail(nil)
		resp, err := w.cas().BatchUpdateBlobs(t.Context(), &repb.BatchUpdateBlobsRequest{Requests: []*repb.BatchUpdateBlobsRequest_Request{
			{Digest: wire(sha("good")), Data: []byte("good")},
		}})
		if err != nil || resp.Responses[0].Status.Code != int32(codes.ResourceExhausted) {
			t.Error(resp, err)
		}
	})
}

func TestBatchReadBlobs(t *testing.T) {
	w := start(t)
	large := bytes.Repeat([]byte("large"), 40<<10)
	have, big := w.store.Add([]byte("have")), w.store.Add(large)
	resp, err := w.cas().BatchReadBlobs(t.Context(), &repb.BatchReadBlobsRequest{
		Digests:               []*repb.Digest{wire(have), wire(sha("gone")), wire(big), wire(digest.Empty(digest.SHA256))},
		AcceptableCompressors: []repb.Compressor_Value{repb.Compressor_ZSTD},
	})
	if err != nil {
		t.Fatal(err)
	}
	r := resp.Responses
	if string(r[0].Data) != "have" || r[0].Status.GetCode() != 0 || r[0].Compressor != repb.Compressor_IDENTITY {
		t.Error(r[0])
	}
	if r[1].Status.GetCode() != int32(codes.NotFound) || len(r[1].Data) != 0 {
		t.Error(r[1])
	}
	if !bytes.Equal(r[2].Data, large) {
		t.Error("the large blob differs")
	}
	if r[3].Status.GetCode() != 0 {
		t.Error(r[3])
	}

	t.Run("more than announced", func(t *testing.T) {
		for _, sizes := range [][]int64{{4 << 20}, {math.MaxInt64, math.MaxInt64}, {3 << 20, 3 << 20}} {
			var ds []*repb.Digest
			for i, n := range sizes {
				d := wire(sha(fmt.Sprint(i)))
				d.SizeBytes = n
				ds = append(ds, d)
			}
			_, err := w.cas().BatchReadBlobs(t.Context(), &repb.BatchReadBlobsRequest{Digests: ds})
			wantInvalid(t, err, "digests")
		}
	})
	t.Run("many blobs stay within 4 MiB", func(t *testing.T) {
		req := &repb.BatchReadBlobsRequest{}
		for i := range 8000 {
			req.Digests = append(req.Digests, wire(w.store.Add([]byte(fmt.Sprintf("%0515d", i)))))
		}
		resp, err := w.cas().BatchReadBlobs(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		full := 0
		for _, r := range resp.Responses {
			if r.Status.GetCode() == int32(codes.ResourceExhausted) {
				full++
			}
		}
		if full == 0 || full > 4000 || proto.Size(resp) > 4<<20 {
			t.Errorf("%d left out of %d bytes", full, proto.Size(resp))
		}
	})
}

func TestSplitAndSpliceAreNamedAsUnimplemented(t *testing.T) {
	w := start(t)
	_, err := w.cas().SplitBlob(t.Context(), &repb.SplitBlobRequest{})
	wantCode(t, err, codes.Unimplemented)
	if !strings.Contains(err.Error(), "SplitBlob") {
		t.Error(err)
	}
	_, err = w.cas().SpliceBlob(t.Context(), &repb.SpliceBlobRequest{})
	wantCode(t, err, codes.Unimplemented)
	if !strings.Contains(err.Error(), "SpliceBlob") {
		t.Error(err)
	}
}

// getTree gathers the pages of one call.
func getTree(ctx context.Context, w *world, req *repb.GetTreeRequest) (pages []*repb.GetTreeResponse, err error) {
	s, err := w.cas().GetTree(ctx, req, grpc.WaitForReady(true))
	if err != nil {
		return nil, err
	}
	for {
		p, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return pages, nil
		}
		if err != nil {
			return pages, err
		}
		pages = append(pages, p)
	}
}

func names(pages []*repb.GetTreeResponse) (all []string) {
	for _, p := range pages {
		for _, d := range p.Directories {
			all = append(all, d.Files[0].Name)
		}
	}
	return all
}

func dir(name string, subs ...*repb.Digest) *repb.Directory {
	d := &repb.Directory{Files: []*repb.FileNode{{Name: name, Digest: wire(sha(name))}}}
	for i, s := range subs {
		d.Directories = append(d.Directories, &repb.DirectoryNode{Name: fmt.Sprint(i), Digest: s})
	}
	return d
}

func TestGetTree(t *testing.T) {
	w := start(t)
	leaf := w.add(t, dir("leaf"))
	mid := w.add(t, dir("mid", leaf))
	root := w.add(t, dir("root", mid, leaf, wire(sha("gone"))))

	t.Run("each directory once, without what is missing", func(t *testing.T) {
		pages, err := getTree(t.Context(), w, &repb.GetTreeRequest{RootDigest: root})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"root", "mid", "leaf"}, names(pages)); diff != "" {
			t.Error(diff)
		}
		if pages[len(pages)-1].NextPageToken != "" {
			t.Error("the last page has a token")
		}
	})
	t.Run("goes on from each page", func(t *testing.T) {
		pages, err := getTree(t.Context(), w, &repb.GetTreeRequest{RootDigest: root, PageSize: 1})
		if err != nil || len(pages) != 3 {
			t.Fatal(len(pages), err)
		}
		for i, p := range pages[:2] {
			rest, err := getTree(t.Context(), w, &repb.GetTreeRequest{RootDigest: root, PageToken: p.NextPageToken})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(names(pages[i+1:]), names(rest)); diff != "" {
				t.Error(diff)
			}
		}
	})
	t.Run("pages stay below 4 MiB", func(t *testing.T) {
		var subs []*repb.Digest
		for i := range 3 {
			subs = append(subs, w.add(t, dir(strings.Repeat(fmt.Sprint(i), 2<<20))))
		}
		pages, err := getTree(t.Context(), w, &repb.GetTreeRequest{RootDigest: w.add(t, dir("large", subs...))})
		if err != nil || len(pages) < 3 || len(names(pages)) != 4 {
			t.Error(len(pages), err)
		}
	})
	t.Run("the empty directory", func(t *testing.T) {
		pages, err := getTree(t.Context(), w, &repb.GetTreeRequest{RootDigest: wire(digest.Empty(digest.SHA256))})
		if err != nil || len(pages) != 1 || len(pages[0].Directories) != 1 {
			t.Error(pages, err)
		}
	})
	t.Run("a root that is missing", func(t *testing.T) {
		_, err := getTree(t.Context(), w, &repb.GetTreeRequest{RootDigest: wire(sha("gone"))})
		wantCode(t, err, codes.NotFound)
	})
	t.Run("no directory", func(t *testing.T) {
		_, err := getTree(t.Context(), w, &repb.GetTreeRequest{RootDigest: wire(w.store.Add([]byte("\xff\xff")))})
		wantInvalid(t, err, "root_digest")
	})
	t.Run("no directory, by its size", func(t *testing.T) {
		huge := w.store.Add(bytes.Repeat([]byte{0xff}, 5<<20))
		_, err := getTree(t.Context(), w, &repb.GetTreeRequest{RootDigest: w.add(t, dir("root", wire(huge)))})
		wantInvalid(t, err, "root_digest")
		if !strings.Contains(err.Error(), "more than a Directory may have") {
			t.Errorf("it was read first: %v", err)
		}
	})
	t.Run("bad pages", func(t *testing.T) {
		_, err := getTree(t.Context(), w, &repb.GetTreeRequest{RootDigest: root, PageSize: -1})
		wantInvalid(t, err, "page_size")
		for _, token := range []string{"x", "-1", "1", "1-0123456789abcdef", "99999999999-" + root.Hash[:16]} {
			_, err = getTree(t.Context(), w, &repb.GetTreeRequest{RootDigest: root, PageToken: token})
			wantInvalid(t, err, "page_token")
		}
	})
}
