// Package reapi is a client of the Remote Execution API as plain as it can be,
// for benchmarks and tests: it adds nothing to what the protocol says.
package reapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"github.com/google/uuid"
	bspb "google.golang.org/genproto/googleapis/bytestream"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

// Client speaks the Remote Execution API over one connection, as Bazel does.
type Client struct {
	Conn *grpc.ClientConn
	CAS  repb.ContentAddressableStorageClient
	AC   repb.ActionCacheClient
	Exec repb.ExecutionClient
	BS   bspb.ByteStreamClient
}

// Dial connects to host:port, in plaintext.
func Dial(addr string) (*Client, error) {
	conn, err := grpc.NewClient("passthrough:///"+addr,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		return nil, err
	}
	return &Client{
		Conn: conn,
		CAS:  repb.NewContentAddressableStorageClient(conn),
		AC:   repb.NewActionCacheClient(conn),
		Exec: repb.NewExecutionClient(conn),
		BS:   bspb.NewByteStreamClient(conn),
	}, nil
}

// Close ends the connection.
func (c *Client) Close() { _ = c.Conn.Close() }

// Name is the SHA256 digest of b.
func Name(b []byte) *repb.Digest {
	d := digest.Of(digest.SHA256, b)
	return &repb.Digest{Hash: d.Hash(), SizeBytes: d.Size()}
}

// Message serializes m and names it.
func Message(m proto.Message) ([]byte, *repb.Digest) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		panic(err) // a message made here always serializes
	}
	return b, Name(b)
}

// Missing asks which of ds the server lacks.
func (c *Client) Missing(ctx context.Context, ds []*repb.Digest) ([]*repb.Digest, error) {
	resp, err := c.CAS.FindMissingBlobs(ctx, &repb.FindMissingBlobsRequest{BlobDigests: ds})
	if err != nil {
		return nil, err
	}
	return resp.MissingBlobDigests, nil
}

// Upload sends blobs in batches of at most 3 MiB and 4,000.
func (c *Client) Upload(ctx context.Context, blobs [][]byte) error {
	for len(blobs) > 0 {
		req, size := &repb.BatchUpdateBlobsRequest{}, 0
		for len(blobs) > 0 && len(req.Requests) < 4000 && (size == 0 || size+len(blobs[0]) < 3<<20) {
			req.Requests = append(req.Requests, &repb.BatchUpdateBlobsRequest_Request{Digest: Name(blobs[0]), Data: blobs[0]})
			size += len(blobs[0])
			blobs = blobs[1:]
		}
		resp, err := c.CAS.BatchUpdateBlobs(ctx, req)
		if err != nil {
			return err
		}
		for _, r := range resp.Responses {
			if r.Status.GetCode() != 0 {
				return status.ErrorProto(r.Status)
			}
		}
	}
	return nil
}

// UploadMissing sends only what the server lacks.
func (c *Client) UploadMissing(ctx context.Context, blobs [][]byte) error {
	byHash := map[string][]byte{}
	ds := make([]*repb.Digest, 0, len(blobs))
	for _, b := range blobs {
		d := Name(b)
		byHash[d.Hash] = b
		ds = append(ds, d)
	}
	var lacking [][]byte
	for len(ds) > 0 {
		n := min(len(ds), 10000)
		gone, err := c.Missing(ctx, ds[:n])
		if err != nil {
			return err
		}
		for _, d := range gone {
			lacking = append(lacking, byHash[d.Hash])
		}
		ds = ds[n:]
	}
	return c.Upload(ctx, lacking)
}

// Write uploads one blob by ByteStream.
func (c *Client) Write(ctx context.Context, b []byte) error {
	d := Name(b)
	stream, err := c.BS.Write(ctx)
	if err != nil {
		return err
	}
	res := fmt.Sprintf("uploads/%s/blobs/%s/%d", uuid.New(), d.Hash, d.SizeBytes)
	for off := 0; ; {
		n := min(len(b)-off, 1<<20)
		err := stream.Send(&bspb.WriteRequest{ResourceName: res, WriteOffset: int64(off), Data: b[off : off+n], FinishWrite: off+n == len(b)})
		off += n
		res = ""
		if errors.Is(err, io.EOF) || off == len(b) {
			break
		}
		if err != nil {
			return err
		}
	}
	resp, err := stream.CloseAndRecv()
	if err != nil {
		return err
	}
	if resp.CommittedSize != int64(len(b)) {
		return fmt.Errorf("committed %d of %d bytes", resp.CommittedSize, len(b))
	}
	return nil
}

// Read downloads one blob by ByteStream and counts its bytes.
func (c *Client) Read(ctx context.Context, d *repb.Digest) (int64, error) {
	stream, err := c.BS.Read(ctx, &bspb.ReadRequest{ResourceName: fmt.Sprintf("blobs/%s/%d", d.Hash, d.SizeBytes)})
	if err != nil {
		return 0, err
	}
	var n int64
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return n, err
		}
		n += int64(len(resp.Data))
	}
}

// Execute runs an action and returns its result.
func (c *Client) Execute(ctx context.Context, action *repb.Digest, skipCache bool) (*repb.ActionResult, error) {
	stream, err := c.Exec.Execute(ctx, &repb.ExecuteRequest{ActionDigest: action, SkipCacheLookup: skipCache})
	if err != nil {
		return nil, err
	}
	for {
		op, err := stream.Recv()
		if err != nil {
			return nil, err
		}
		if !op.Done {
			continue
		}
		if e := op.GetError(); e != nil {
			return nil, status.ErrorProto(e)
		}
		var resp repb.ExecuteResponse
		if err := op.GetResponse().UnmarshalTo(&resp); err != nil {
			return nil, err
		}
		if resp.Status.GetCode() != 0 {
			return nil, status.ErrorProto(resp.Status)
		}
		if resp.Result.GetExitCode() != 0 {
			return nil, fmt.Errorf("exit code %d: %s", resp.Result.ExitCode, strings.TrimSpace(string(resp.Result.StderrRaw)))
		}
		return resp.Result, nil
	}
}
