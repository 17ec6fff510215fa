package replica

import (
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
	"github.com/remex-build/terraform-provider-remex/daemon/rpc"
)

func TestADiskRefusesMalformedRequests(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, options{r: 1})
	addr := c.nodes[0].addr
	large := random(largeSize).Digest.Append(nil)
	for name, call := range map[string]struct {
		m         pb.Method
		req, resp proto.Message
	}{
		"exists of no digests": {pb.Method_METHOD_BLOB_EXISTS, &pb.ExistsRequest{Digests: []byte{1, 2}}, &pb.ExistsResponse{}},
		"get of no digests":    {pb.Method_METHOD_BLOB_GET, &pb.GetRequest{Digests: []byte{99}}, &pb.GetResponse{}},
		"get of a large blob":  {pb.Method_METHOD_BLOB_GET, &pb.GetRequest{Digests: large}, &pb.GetResponse{}},
		"put without a digest": {pb.Method_METHOD_BLOB_PUT, &pb.PutRequest{Blobs: []*pb.PutRequest_Blob{{}}}, &pb.PutResponse{}},
		"put of a large blob":  {pb.Method_METHOD_BLOB_PUT, &pb.PutRequest{Blobs: []*pb.PutRequest_Blob{{Digest: large}}}, &pb.PutResponse{}},
		"put of two digests":   {pb.Method_METHOD_BLOB_PUT, &pb.PutRequest{Blobs: []*pb.PutRequest_Blob{{Digest: append(large, large...)}}}, &pb.PutResponse{}},
		"pull of no digests":   {pb.Method_METHOD_BLOB_PULL, &pb.PullRequest{Digests: []byte{0}}, &pb.PullResponse{}},
		"upload without a key": {pb.Method_METHOD_BLOB_UPLOAD, &pb.UploadRequest{}, &pb.UploadResponse{}},
		"upload of no digest":  {pb.Method_METHOD_BLOB_UPLOAD, &pb.UploadRequest{Key: &pb.UploadKey{Digest: []byte{7}}}, &pb.UploadResponse{}},
		"get beyond a message": {pb.Method_METHOD_BLOB_GET, &pb.GetRequest{Digests: digest.Pack(many(100, 60_000))}, &pb.GetResponse{}},
	} {
		err := c.wire.Call(t.Context(), addr, call.m, call.req, call.resp)
		if got := rpc.CodeOf(err); got != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
	conn, err := c.wire.Conn(addr)
	if err != nil {
		t.Fatal(err)
	}
	for name, frames := range map[string][]*pb.WriteFrame{
		"no header":             {{Data: []byte("x")}},
		"no digest":             {{Header: &pb.WriteFrame_Header{}}},
		"offset, no upload":     {{Header: &pb.WriteFrame_Header{Digest: large, Offset: 1}}},
		"upload of another":     {{Header: &pb.WriteFrame_Header{Digest: large, Upload: &pb.UploadKey{Digest: random(1).Digest.Append(nil)}}}},
		"end before the blob":   {{Header: &pb.WriteFrame_Header{Digest: large}}, {Data: []byte("x")}},
		"finish before the end": {{Header: &pb.WriteFrame_Header{Digest: large}}, {Data: []byte("x"), Finish: true}},
	} {
		stream, err := pb.NewBlobsClient(conn).Write(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range frames {
			_ = stream.Send(f) // the answer says what was wrong with it
		}
		if _, err := stream.CloseAndRecv(); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
	if st := c.nodes[0].disk.Stats(); st.OwnedBlobs+st.CachedBlobs > 0 {
		t.Errorf("the disk holds %d blobs", st.OwnedBlobs+st.CachedBlobs)
	}
}

func many(n, size int) (ds []digest.Digest) {
	for range n {
		ds = append(ds, random(size).Digest)
	}
	return ds
}
