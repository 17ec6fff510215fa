package rpc

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"google.golang.org/genproto/googleapis/bytestream"

	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
)

// inFlight makes b.N calls, n at any time.
func inFlight(b *testing.B, n int, call func() error) {
	b.Helper()
	if err := call(); err != nil { // dials
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.ResetTimer()
	var wg sync.WaitGroup
	for g := range n {
		wg.Go(func() {
			for i := g; i < b.N; i += n {
				if err := call(); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "calls/s")
}

// unary answers QueryWriteStatus, which carries as much as the calls here.
type unary struct{ copier }

func (*unary) QueryWriteStatus(_ context.Context, r *bytestream.QueryWriteStatusRequest) (*bytestream.QueryWriteStatusResponse, error) {
	return &bytestream.QueryWriteStatusResponse{CommittedSize: int64(len(r.ResourceName))}, nil
}

// BenchmarkCall compares a call over the shared stream with a plain unary gRPC
// call that carries the same, over one loopback connection each.
func BenchmarkCall(b *testing.B) {
	digests := make([]byte, 34)
	for _, n := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("stream/%d", n), func(b *testing.B) {
			srv, p := serve(b, "127.0.0.1:0", echo), dialPeers(b)
			req := &pb.ExistsRequest{Digests: digests}
			inFlight(b, n, func() error {
				return p.Call(b.Context(), srv.addr, pb.Method_METHOD_BLOB_EXISTS, req, &pb.ExistsResponse{})
			})
		})
		b.Run(fmt.Sprintf("unary/%d", n), func(b *testing.B) {
			client := serveBytes(b, &unary{}, nil, []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())})
			req := &bytestream.QueryWriteStatusRequest{ResourceName: string(digests)}
			inFlight(b, n, func() error {
				_, err := client.QueryWriteStatus(b.Context(), req)
				return err
			})
		})
	}
}

// stored serves the same bytes again and again, with Bulk or without.
type stored struct {
	bytestream.UnimplementedByteStreamServer
	chunk []byte
	bulk  bool
}

const streamed = 64 << 20

func (s *stored) Read(_ *bytestream.ReadRequest, out bytestream.ByteStream_ReadServer) error {
	b := Bulk{Field: 10}
	defer b.Free()
	for n := 0; n < streamed; n += len(s.chunk) {
		if !s.bulk {
			if err := out.Send(&bytestream.ReadResponse{Data: s.chunk}); err != nil {
				return err
			}
			continue
		}
		b.Fill(bytes.NewReader(s.chunk), len(s.chunk))
		if err := out.SendMsg(&b); err != nil {
			return err
		}
	}
	return nil
}

// BenchmarkRead streams 64 MiB over loopback, as generated code does and with
// Bulk at both ends.
func BenchmarkRead(b *testing.B) {
	for _, size := range []int{64 << 10, 256 << 10, 1 << 20} {
		for _, bulk := range []bool{false, true} {
			b.Run(fmt.Sprintf("%dKiB/bulk=%v", size>>10, bulk), func(b *testing.B) {
				client := serveBytes(b, &stored{chunk: make([]byte, size), bulk: bulk}, ClusterServerOptions(), DialOptions(nil))
				b.SetBytes(streamed)
				b.ReportAllocs()
				for b.Loop() {
					s, err := client.Read(b.Context(), &bytestream.ReadRequest{})
					if err != nil {
						b.Fatal(err)
					}
					msg := Bulk{Field: 10}
					for err == nil {
						if bulk {
							err = s.RecvMsg(&msg)
						} else {
							_, err = s.Recv()
						}
					}
					msg.Free()
					if err != io.EOF {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
