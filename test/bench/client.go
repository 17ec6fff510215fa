package main

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
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

// client speaks the Remote Execution API over one connection, as Bazel does.
type client struct {
	conn *grpc.ClientConn
	cas  repb.ContentAddressableStorageClient
	ac   repb.ActionCacheClient
	exec repb.ExecutionClient
	bs   bspb.ByteStreamClient
}

func dial(addr string) (*client, error) {
	conn, err := grpc.NewClient("passthrough:///"+addr,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		return nil, err
	}
	return &client{
		conn: conn,
		cas:  repb.NewContentAddressableStorageClient(conn),
		ac:   repb.NewActionCacheClient(conn),
		exec: repb.NewExecutionClient(conn),
		bs:   bspb.NewByteStreamClient(conn),
	}, nil
}

func (c *client) close() { _ = c.conn.Close() }

func name(b []byte) *repb.Digest {
	d := digest.Of(digest.SHA256, b)
	return &repb.Digest{Hash: d.Hash(), SizeBytes: d.Size()}
}

// message serializes m and names it.
func message(m proto.Message) ([]byte, *repb.Digest) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		panic(err) // a message made here always serializes
	}
	return b, name(b)
}

// missing asks which of ds the server lacks.
func (c *client) missing(ctx context.Context, ds []*repb.Digest) ([]*repb.Digest, error) {
	resp, err := c.cas.FindMissingBlobs(ctx, &repb.FindMissingBlobsRequest{BlobDigests: ds})
	if err != nil {
		return nil, err
	}
	return resp.MissingBlobDigests, nil
}

// upload sends blobs in batches of at most 3 MiB and 4,000.
func (c *client) upload(ctx context.Context, blobs [][]byte) error {
	for len(blobs) > 0 {
		req, size := &repb.BatchUpdateBlobsRequest{}, 0
		for len(blobs) > 0 && len(req.Requests) < 4000 && (size == 0 || size+len(blobs[0]) < 3<<20) {
			req.Requests = append(req.Requests, &repb.BatchUpdateBlobsRequest_Request{Digest: name(blobs[0]), Data: blobs[0]})
			size += len(blobs[0])
			blobs = blobs[1:]
		}
		resp, err := c.cas.BatchUpdateBlobs(ctx, req)
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

// uploadMissing sends only what the server lacks.
func (c *client) uploadMissing(ctx context.Context, blobs [][]byte) error {
	byHash := map[string][]byte{}
	ds := make([]*repb.Digest, 0, len(blobs))
	for _, b := range blobs {
		d := name(b)
		byHash[d.Hash] = b
		ds = append(ds, d)
	}
	var lacking [][]byte
	for len(ds) > 0 {
		n := min(len(ds), 10000)
		gone, err := c.missing(ctx, ds[:n])
		if err != nil {
			return err
		}
		for _, d := range gone {
			lacking = append(lacking, byHash[d.Hash])
		}
		ds = ds[n:]
	}
	return c.upload(ctx, lacking)
}

// write uploads one blob by ByteStream.
func (c *client) write(ctx context.Context, b []byte) error {
	d := name(b)
	stream, err := c.bs.Write(ctx)
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

// read downloads one blob by ByteStream and counts its bytes.
func (c *client) read(ctx context.Context, d *repb.Digest) (int64, error) {
	stream, err := c.bs.Read(ctx, &bspb.ReadRequest{ResourceName: fmt.Sprintf("blobs/%s/%d", d.Hash, d.SizeBytes)})
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

// execute runs an action and returns its result.
func (c *client) execute(ctx context.Context, action *repb.Digest, skipCache bool) (*repb.ActionResult, error) {
	stream, err := c.exec.Execute(ctx, &repb.ExecuteRequest{ActionDigest: action, SkipCacheLookup: skipCache})
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

// unsupported reports whether err says that the server has no such service.
func unsupported(err error) bool { return status.Code(err) == codes.Unimplemented }
