// Package reapitest is a server of the Remote Execution API for the tests of
// its client: blobs in memory, commands as the test says, and streams that
// break when they are told to. It is no measure of what a real server does.
package reapitest

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"

	"cloud.google.com/go/longrunning/autogen/longrunningpb"
	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"google.golang.org/genproto/googleapis/bytestream"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
)

// Server holds what a test may look at and change.
type Server struct {
	repb.UnimplementedCapabilitiesServer
	repb.UnimplementedContentAddressableStorageServer
	repb.UnimplementedExecutionServer
	bytestream.UnimplementedByteStreamServer
	longrunningpb.UnimplementedOperationsServer
	pb.UnimplementedAdminServer

	Target string // grpc://host:port

	// Run is what executing means. The stream's context ends with the client.
	Run func(ctx context.Context, s *Server, a *repb.Action, c *repb.Command) *repb.ExecuteResponse
	// Nodes answers the admin service.
	Nodes *pb.StatusResponse

	mu        sync.Mutex // guards everything below
	blobs     map[digest.Digest][]byte
	partial   map[string][]byte // uploads that broke
	Breaks    int               // so many streams break half way, or when an operation was begun
	Cancelled []string
	Uploads   int // blobs that came
	Waits     int
	done      map[string]*repb.ExecuteResponse
}

// Start serves until the test ends.
func Start(t *testing.T) *Server {
	t.Helper()
	s := &Server{
		blobs: map[digest.Digest][]byte{}, partial: map[string][]byte{},
		done: map[string]*repb.ExecuteResponse{},
	}
	lis, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.Target = "grpc://" + lis.Addr().String()
	g := grpc.NewServer(grpc.MaxRecvMsgSize(16 << 20))
	repb.RegisterCapabilitiesServer(g, s)
	repb.RegisterContentAddressableStorageServer(g, s)
	repb.RegisterExecutionServer(g, s)
	bytestream.RegisterByteStreamServer(g, s)
	longrunningpb.RegisterOperationsServer(g, s)
	pb.RegisterAdminServer(g, s)
	served := make(chan error, 1)
	go func() { served <- g.Serve(lis) }()
	t.Cleanup(func() {
		g.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return s
}

// Put stores a blob, Blob returns one.
func (s *Server) Put(b []byte) *repb.Digest {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := digest.Of(digest.SHA256, b)
	s.blobs[d] = b
	return &repb.Digest{Hash: d.Hash(), SizeBytes: d.Size()}
}

// PutMessage stores a message.
func (s *Server) PutMessage(m proto.Message) *repb.Digest {
	b, _ := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	return s.Put(b)
}

// Corrupt makes the server send other bytes for a blob.
func (s *Server) Corrupt(p *repb.Digest, b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d, _ := digest.Parse(digest.SHA256, p.Hash, p.SizeBytes)
	s.blobs[d] = b
}

// Blob returns what is stored.
func (s *Server) Blob(p *repb.Digest) ([]byte, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d, err := digest.Parse(digest.SHA256, p.GetHash(), p.GetSizeBytes())
	b, ok := s.blobs[d]
	return b, err == nil && (ok || d.IsEmpty())
}

// Message reads a stored message.
func (s *Server) Message(p *repb.Digest, m proto.Message) error {
	b, ok := s.Blob(p)
	if !ok {
		return status.Errorf(codes.NotFound, "no blob %v", p)
	}
	return proto.Unmarshal(b, m)
}

// breaks reports whether this stream shall break.
func (s *Server) breaks() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Breaks--
	return s.Breaks >= 0
}

func broken() error { return status.Error(codes.Unavailable, "the test breaks this stream") }

// GetCapabilities announces SHA256.
func (s *Server) GetCapabilities(context.Context, *repb.GetCapabilitiesRequest) (*repb.ServerCapabilities, error) {
	return &repb.ServerCapabilities{CacheCapabilities: &repb.CacheCapabilities{
		DigestFunctions: []repb.DigestFunction_Value{repb.DigestFunction_BLAKE3, repb.DigestFunction_SHA256},
	}}, nil
}

// FindMissingBlobs looks for each.
func (s *Server) FindMissingBlobs(_ context.Context, r *repb.FindMissingBlobsRequest) (*repb.FindMissingBlobsResponse, error) {
	resp := &repb.FindMissingBlobsResponse{}
	for _, d := range r.BlobDigests {
		if _, ok := s.Blob(d); !ok {
			resp.MissingBlobDigests = append(resp.MissingBlobDigests, d)
		}
	}
	return resp, nil
}

func (s *Server) store(p *repb.Digest, b []byte) error {
	if d := digest.Of(digest.SHA256, b); d.Hash() != p.Hash || d.Size() != p.SizeBytes {
		return status.Errorf(codes.InvalidArgument, "bytes of %s were sent as %s", d, p.Hash)
	}
	s.Put(b)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Uploads++
	return nil
}

// BatchUpdateBlobs stores all.
func (s *Server) BatchUpdateBlobs(_ context.Context, r *repb.BatchUpdateBlobsRequest) (*repb.BatchUpdateBlobsResponse, error) {
	resp := &repb.BatchUpdateBlobsResponse{}
	for _, u := range r.Requests {
		resp.Responses = append(resp.Responses, &repb.BatchUpdateBlobsResponse_Response{
			Digest: u.Digest, Status: status.Convert(s.store(u.Digest, u.Data)).Proto(),
		})
	}
	return resp, nil
}

// resource takes the digest off the end of a resource name.
func resource(name string) (*repb.Digest, error) {
	parts := strings.Split(name, "/")
	if len(parts) < 3 || parts[len(parts)-3] != "blobs" {
		return nil, status.Errorf(codes.InvalidArgument, "resource %q", name)
	}
	d := &repb.Digest{Hash: parts[len(parts)-2]}
	_, err := fmt.Sscan(parts[len(parts)-1], &d.SizeBytes)
	return d, err
}

// Write takes an upload, and breaks it half way when it is told to.
func (s *Server) Write(stream bytestream.ByteStream_WriteServer) error {
	breaks := s.breaks()
	for {
		r, err := stream.Recv()
		if err != nil {
			return err
		}
		s.mu.Lock()
		have := s.partial[r.ResourceName]
		if r.WriteOffset != int64(len(have)) {
			s.mu.Unlock()
			return status.Errorf(codes.InvalidArgument, "offset %d, not %d", r.WriteOffset, len(have))
		}
		have = append(have, r.Data...)
		s.partial[r.ResourceName] = have
		s.mu.Unlock()
		if breaks {
			return broken()
		}
		if r.FinishWrite {
			d, err := resource(r.ResourceName)
			if err == nil {
				err = s.store(d, have)
			}
			if err != nil {
				return err
			}
			return stream.SendAndClose(&bytestream.WriteResponse{CommittedSize: int64(len(have))})
		}
	}
}

// QueryWriteStatus says how far an upload got.
func (s *Server) QueryWriteStatus(_ context.Context, r *bytestream.QueryWriteStatusRequest) (*bytestream.QueryWriteStatusResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &bytestream.QueryWriteStatusResponse{CommittedSize: int64(len(s.partial[r.ResourceName]))}, nil
}

func (s *Server) Read(r *bytestream.ReadRequest, stream bytestream.ByteStream_ReadServer) error {
	d, err := resource(r.ResourceName)
	if err != nil {
		return err
	}
	b, ok := s.Blob(d)
	if !ok {
		return status.Error(codes.NotFound, "no such blob")
	}
	b = b[r.ReadOffset:]
	if s.breaks() {
		_ = stream.Send(&bytestream.ReadResponse{Data: b[:len(b)/2]})
		return broken()
	}
	for len(b) > 0 {
		n := min(len(b), 1<<20)
		if err := stream.Send(&bytestream.ReadResponse{Data: b[:n]}); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

func operation(name string, stage repb.ExecutionStage_Value, resp *repb.ExecuteResponse) *longrunningpb.Operation {
	meta, _ := anypb.New(&repb.ExecuteOperationMetadata{
		Stage: stage, PartialExecutionMetadata: &repb.ExecutedActionMetadata{Worker: "worker-1"},
	})
	op := &longrunningpb.Operation{Name: name, Metadata: meta}
	if resp != nil {
		a, _ := anypb.New(resp)
		op.Done, op.Result = true, &longrunningpb.Operation_Response{Response: a}
	}
	return op
}

// Execute runs Run.
func (s *Server) Execute(r *repb.ExecuteRequest, stream grpc.ServerStreamingServer[longrunningpb.Operation]) error {
	var a repb.Action
	var c repb.Command
	if err := s.Message(r.ActionDigest, &a); err != nil {
		return err
	}
	if err := s.Message(a.CommandDigest, &c); err != nil {
		return err
	}
	name := "operations/" + r.ActionDigest.Hash
	for _, stage := range []repb.ExecutionStage_Value{repb.ExecutionStage_QUEUED, repb.ExecutionStage_EXECUTING, repb.ExecutionStage_EXECUTING} {
		if err := stream.Send(operation(name, stage, nil)); err != nil {
			return err
		}
	}
	resp := s.Run(stream.Context(), s, &a, &c)
	s.mu.Lock()
	s.done[name] = resp
	s.mu.Unlock()
	if s.breaks() {
		return broken()
	}
	return stream.Send(operation(name, repb.ExecutionStage_COMPLETED, resp))
}

// WaitExecution tells the end of an operation.
func (s *Server) WaitExecution(r *repb.WaitExecutionRequest, stream grpc.ServerStreamingServer[longrunningpb.Operation]) error {
	s.mu.Lock()
	s.Waits++
	resp := s.done[r.Name]
	s.mu.Unlock()
	if resp == nil {
		return status.Error(codes.NotFound, "no such operation")
	}
	return stream.Send(operation(r.Name, repb.ExecutionStage_COMPLETED, resp))
}

// CancelOperation notes who was cancelled.
func (s *Server) CancelOperation(_ context.Context, r *longrunningpb.CancelOperationRequest) (*emptypb.Empty, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Cancelled = append(s.Cancelled, r.Name)
	return &emptypb.Empty{}, nil
}

// Status answers with Nodes.
func (s *Server) Status(context.Context, *pb.StatusRequest) (*pb.StatusResponse, error) {
	if s.Nodes == nil {
		return nil, status.Error(codes.Unimplemented, "no admin service")
	}
	return s.Nodes, nil
}
