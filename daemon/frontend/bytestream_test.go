package frontend_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	bspb "google.golang.org/genproto/googleapis/bytestream"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/blob/replica"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

const uuid = "0f9a31c7-2c0b-4d4f-9d6f-2f6f4e0d7c11"

func uploadName(d digest.Digest) string { return "uploads/" + uuid + "/blobs/" + d.String() }

func random(n int) []byte {
	b := make([]byte, n)
	seed := [32]byte{byte(n), byte(n >> 8), byte(n >> 16)}
	_, _ = rand.NewChaCha8(seed).Read(b) // never fails
	return b
}

func read(t *testing.T, w *world, req *bspb.ReadRequest) (data []byte, largest int, err error) {
	t.Helper()
	s, err := w.bytes().Read(t.Context(), req)
	if err != nil {
		return nil, 0, err
	}
	for {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return data, largest, nil
		}
		if err != nil {
			return data, largest, err
		}
		data, largest = append(data, m.Data...), max(largest, len(m.Data))
	}
}

// write sends the messages until the server answers, and says with what.
func write(t *testing.T, w *world, ms ...*bspb.WriteRequest) (int64, error) {
	t.Helper()
	s, err := w.bytes().Write(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range ms {
		if err := s.Send(m); err != nil {
			break // the answer says why
		}
	}
	resp, err := s.CloseAndRecv()
	return resp.GetCommittedSize(), err
}

// frames cuts an upload of data from off into messages.
func frames(name string, data []byte, off, size int) (ms []*bspb.WriteRequest) {
	for {
		n := min(size, len(data)-off)
		ms = append(ms, &bspb.WriteRequest{ResourceName: name, WriteOffset: int64(off), Data: data[off : off+n], FinishWrite: off+n == len(data)})
		if off += n; off == len(data) {
			return ms
		}
	}
}

func TestRead(t *testing.T) {
	w := start(t)
	for _, size := range []int{0, 1, 100, blob.SmallSize, blob.SmallSize + 1, 3 << 20} {
		data := random(size)
		d := w.store.Add(data)
		for _, off := range []int{0, size / 3, size} {
			for _, limit := range []int{0, 1, size / 2} {
				t.Run(fmt.Sprint(size, " from ", off, " limit ", limit), func(t *testing.T) {
					got, largest, err := read(t, w, &bspb.ReadRequest{
						ResourceName: "some/instance/blobs/" + d.String(), ReadOffset: int64(off), ReadLimit: int64(limit),
					})
					want := data[off:]
					if limit > 0 {
						want = want[:min(limit, len(want))]
					}
					if err != nil || !bytes.Equal(got, want) {
						t.Fatalf("%d bytes, %v; want %d", len(got), err, len(want))
					}
					if largest > 1<<20 {
						t.Errorf("a message of %d bytes", largest)
					}
				})
			}
		}
	}
	t.Run("blake3", func(t *testing.T) {
		d := digest.Of(digest.BLAKE3, []byte("b3"))
		name := fmt.Sprintf("uploads/%s/blobs/blake3/%s/%d", uuid, d.Hash(), d.Size())
		if n, err := write(t, w, frames(name, []byte("b3"), 0, 10)...); err != nil || n != 2 {
			t.Fatal(n, err)
		}
		got, _, err := read(t, w, &bspb.ReadRequest{ResourceName: "blobs/" + d.String()})
		if err != nil || string(got) != "b3" {
			t.Fatal(got, err)
		}
	})
}

func TestReadRefuses(t *testing.T) {
	w := start(t)
	small, large := w.store.Add(random(10)), w.store.Add(random(100<<10))
	for _, d := range []digest.Digest{small, large} {
		name := "blobs/" + d.String()
		_, _, err := read(t, w, &bspb.ReadRequest{ResourceName: name, ReadOffset: -1})
		wantCode(t, err, codes.OutOfRange)
		_, _, err = read(t, w, &bspb.ReadRequest{ResourceName: name, ReadOffset: d.Size() + 1})
		wantCode(t, err, codes.OutOfRange)
		_, _, err = read(t, w, &bspb.ReadRequest{ResourceName: name, ReadLimit: -1})
		wantInvalid(t, err, "read_limit")
		w.store.Drop(d)
		_, _, err = read(t, w, &bspb.ReadRequest{ResourceName: name})
		wantCode(t, err, codes.NotFound)
		w.store.Fail(blob.ErrUnavailable)
		_, _, err = read(t, w, &bspb.ReadRequest{ResourceName: name})
		wantCode(t, err, codes.Unavailable)
		w.store.Fail(nil)
	}
	_, _, err := read(t, w, &bspb.ReadRequest{ResourceName: "compressed-blobs/zstd/" + small.String()})
	wantInvalid(t, err, "resource_name")
	if !strings.Contains(err.Error(), "compressed-blobs/zstd") {
		t.Error(err)
	}
}

func TestWrite(t *testing.T) {
	for _, size := range []int{0, 1, 40 << 10, blob.SmallSize, blob.SmallSize + 1, 1 << 20} {
		for _, frame := range []int{16 << 10, 2 << 20} {
			t.Run(fmt.Sprint(size, " in ", frame), func(t *testing.T) {
				w := start(t)
				data := random(size)
				d := digest.Of(digest.SHA256, data)
				n, err := write(t, w, frames("a/b/"+uploadName(d)+"/some/metadata", data, 0, frame)...)
				if err != nil || n != int64(size) || !w.store.Has(d) {
					t.Fatal(n, err)
				}
				if size <= blob.SmallSize && w.store.Calls("Upload") > 0 {
					t.Error("a small blob did not go the batch way")
				}
			})
		}
	}
	t.Run("later messages need no name", func(t *testing.T) {
		w := start(t)
		data := random(100 << 10)
		d := digest.Of(digest.SHA256, data)
		ms := frames(uploadName(d), data, 0, 30<<10)
		for _, m := range ms[1:] {
			m.ResourceName = ""
		}
		if n, err := write(t, w, ms...); err != nil || n != d.Size() {
			t.Fatal(n, err)
		}
	})
	t.Run("the stream's end stands for finish_write when all is there", func(t *testing.T) {
		for _, size := range []int{100, 100 << 10} {
			w := start(t)
			data := random(size)
			d := digest.Of(digest.SHA256, data)
			ms := frames(uploadName(d), data, 0, 30<<10)
			ms[len(ms)-1].FinishWrite = false
			if n, err := write(t, w, ms...); err != nil || n != d.Size() || !w.store.Has(d) {
				t.Fatal(n, err)
			}
		}
	})
	t.Run("a blob that is there ends the upload early", func(t *testing.T) {
		w := start(t)
		data := random(1 << 20)
		d := w.store.Add(data)
		n, err := write(t, w, frames(uploadName(d), data, 0, 16<<10)[:2]...)
		if err != nil || n != d.Size() {
			t.Fatal(n, err)
		}
	})
}

func TestWriteResumes(t *testing.T) {
	w := start(t)
	data := random(200 << 10)
	d := digest.Of(digest.SHA256, data)
	name := "inst/" + uploadName(d)
	query := func() *bspb.QueryWriteStatusResponse {
		t.Helper()
		r, err := w.bytes().QueryWriteStatus(t.Context(), &bspb.QueryWriteStatusRequest{ResourceName: name})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := query(); r.CommittedSize != 0 || r.Complete {
		t.Fatal("unknown:", r)
	}
	w.store.KeepPartial(replica.UploadKey{Instance: "inst", UUID: uuid}, d, data[:70<<10])
	if r := query(); r.CommittedSize != 70<<10 || r.Complete {
		t.Fatal("partial:", r)
	}
	for _, off := range []int{60 << 10, 80 << 10} {
		_, err := write(t, w, frames(name, data, off, 16<<10)...)
		wantCode(t, err, codes.Aborted)
	}
	if n, err := write(t, w, frames(name, data, 70<<10, 16<<10)...); err != nil || n != d.Size() || !w.store.Has(d) {
		t.Fatal(n, err)
	}
	if r := query(); r.CommittedSize != d.Size() || !r.Complete {
		t.Fatal("complete:", r)
	}

	t.Run("what a broken stream sent is kept", func(t *testing.T) {
		data := random(300 << 10)
		d := digest.Of(digest.SHA256, data)
		ms := frames(uploadName(d), data, 0, 100<<10)
		_, err := write(t, w, ms[:2]...)
		wantInvalid(t, err, "finish_write")
		r, err := w.bytes().QueryWriteStatus(t.Context(), &bspb.QueryWriteStatusRequest{ResourceName: uploadName(d)})
		if err != nil || r.CommittedSize != 200<<10 {
			t.Fatal(r, err)
		}
	})
	t.Run("small ones begin again", func(t *testing.T) {
		data := random(40 << 10)
		d := digest.Of(digest.SHA256, data)
		_, err := write(t, w, frames(uploadName(d), data, 16<<10, 16<<10)...)
		wantCode(t, err, codes.Aborted)
		r, err := w.bytes().QueryWriteStatus(t.Context(), &bspb.QueryWriteStatusRequest{ResourceName: uploadName(d)})
		if err != nil || r.CommittedSize != 0 || r.Complete {
			t.Fatal(r, err)
		}
	})
	t.Run("status that cannot be told", func(t *testing.T) {
		w.store.Fail(blob.ErrUnavailable)
		defer w.store.Fail(nil)
		_, err := w.bytes().QueryWriteStatus(t.Context(), &bspb.QueryWriteStatusRequest{ResourceName: uploadName(sha(string(random(90 << 10))))})
		wantCode(t, err, codes.Unavailable)
	})
}

func TestWriteRefuses(t *testing.T) {
	for _, size := range []int{1000, 100 << 10} {
		w := start(t)
		data := random(size)
		d := digest.Of(digest.SHA256, data)
		name := uploadName(d)
		ms := func(f func(ms []*bspb.WriteRequest)) []*bspb.WriteRequest {
			ms := frames(name, data, 0, size/2)
			f(ms)
			return ms
		}
		for what, c := range map[string]struct {
			ms    []*bspb.WriteRequest
			field string
		}{
			"nothing":         {nil, "resource_name"},
			"no name":         {[]*bspb.WriteRequest{{Data: data}}, "resource_name"},
			"name of a blob":  {[]*bspb.WriteRequest{{ResourceName: "blobs/" + d.String()}}, "resource_name"},
			"compressed":      {[]*bspb.WriteRequest{{ResourceName: "uploads/" + uuid + "/compressed-blobs/zstd/" + d.String()}}, "resource_name"},
			"negative offset": {[]*bspb.WriteRequest{{ResourceName: name, WriteOffset: -1}}, "write_offset"},
			"offset beyond":   {[]*bspb.WriteRequest{{ResourceName: name, WriteOffset: d.Size() + 1}}, "write_offset"},
			"short": {ms(func(ms []*bspb.WriteRequest) {
				ms[0].FinishWrite = true
			})[:1], "finish_write"},
			"cut short": {ms(func([]*bspb.WriteRequest) {})[:1], "finish_write"},
			"long": {ms(func(ms []*bspb.WriteRequest) {
				ms[1].Data = append(slices.Clip(ms[1].Data), 0)
			}), "data"},
			"gap":           {ms(func(ms []*bspb.WriteRequest) { ms[1].WriteOffset++ }), "write_offset"},
			"overlap":       {ms(func(ms []*bspb.WriteRequest) { ms[1].WriteOffset-- }), "write_offset"},
			"another name":  {ms(func(ms []*bspb.WriteRequest) { ms[1].ResourceName = uploadName(sha("x")) }), "resource_name"},
			"bad size":      {[]*bspb.WriteRequest{{ResourceName: "uploads/u/blobs/" + d.Hash() + "/-1"}}, "resource_name"},
			"sha1":          {[]*bspb.WriteRequest{{ResourceName: "uploads/u/blobs/" + strings.Repeat("a", 40) + "/1"}}, "resource_name"},
			"no such hash":  {[]*bspb.WriteRequest{{ResourceName: "uploads/u/blobs/abc/1"}}, "resource_name"},
			"size is empty": {[]*bspb.WriteRequest{{ResourceName: "uploads/u/blobs/" + d.Hash() + "/"}}, "resource_name"},
		} {
			t.Run(fmt.Sprint(what, " of ", size), func(t *testing.T) {
				_, err := write(t, w, c.ms...)
				wantInvalid(t, err, c.field)
			})
		}
		t.Run(fmt.Sprint("other bytes of ", size), func(t *testing.T) {
			_, err := write(t, w, frames(name, bytes.Repeat([]byte{1}, size), 0, 16<<10)...)
			wantCode(t, err, codes.InvalidArgument)
		})
		if w.store.Has(d) {
			t.Error("stored in spite of it all")
		}
	}
	w := start(t)
	_, err := w.bytes().QueryWriteStatus(t.Context(), &bspb.QueryWriteStatusRequest{ResourceName: "blobs/x"})
	wantInvalid(t, err, "resource_name")
}

func TestStreamsWaitForTheBudget(t *testing.T) {
	w := start(t)
	old, fresh := random(100<<10), random(300<<10)
	d := w.store.Add(old)
	calls := map[string]func(ctx context.Context) error{
		"read": func(ctx context.Context) error {
			s, err := w.bytes().Read(ctx, &bspb.ReadRequest{ResourceName: "blobs/" + d.String()})
			for err == nil {
				if _, err = s.Recv(); errors.Is(err, io.EOF) {
					return nil
				}
			}
			return err
		},
		"write": func(ctx context.Context) error {
			s, err := w.bytes().Write(ctx)
			if err != nil {
				return err
			}
			for _, m := range frames(uploadName(digest.Of(digest.SHA256, fresh)), fresh, 0, 64<<10) {
				if s.Send(m) != nil {
					break // the answer says why
				}
			}
			_, err = s.CloseAndRecv()
			return err
		},
		"batch": func(ctx context.Context) error {
			_, err := w.cas().BatchUpdateBlobs(ctx, &repb.BatchUpdateBlobsRequest{Requests: []*repb.BatchUpdateBlobsRequest_Request{
				{Digest: &repb.Digest{Hash: d.Hash(), SizeBytes: d.Size()}, Data: old},
			}})
			return err
		},
	}
	w.fill(t)
	for name, call := range calls {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		if err := call(ctx); status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("%s without room in the budget: %v", name, err)
		}
		cancel()
	}
	w.empty(t)
	for name, call := range calls {
		if err := call(t.Context()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	w.fill(t)
}
