package rpc

import (
	"context"
	"fmt"
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
