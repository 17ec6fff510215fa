package replica

import (
	"context"
	"log/slog"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
	"github.com/remex-build/terraform-provider-remex/daemon/rpc"
)

// Server offers a worker's disk to the other nodes. What it answers concerns
// this disk alone; only a pull makes it ask others.
type Server struct {
	pb.UnimplementedBlobsServer

	store *Store
	local Disk
	log   *slog.Logger
	// The budgets are apart, so that no stream that waits for room waits for
	// one that waits for it: serving a read or a write waits for nobody, and a
	// pull only for another node's reads.
	reads, writes, pulls *rpc.Budget
	uploads              *uploads
	receiving            sync.WaitGroup // the streams of uploads
}

// NewServer serves the disk that store was given as Local.
func NewServer(store *Store, log *slog.Logger, reg prometheus.Registerer) *Server {
	return &Server{
		store: store, local: store.local, log: log.With("part", "replica"),
		reads:   rpc.NewBudget(store.share),
		writes:  rpc.NewBudget(store.share),
		pulls:   rpc.NewBudget(store.share),
		uploads: newUploads(store.local, reg),
	}
}

// Register adds the disk's methods to m, and its streams to r.
func (s *Server) Register(m *rpc.Mux, r grpc.ServiceRegistrar) {
	rpc.Handle(m, pb.Method_METHOD_BLOB_EXISTS, s.exists)
	rpc.Handle(m, pb.Method_METHOD_BLOB_GET, s.get)
	rpc.Handle(m, pb.Method_METHOD_BLOB_PUT, s.put)
	rpc.Handle(m, pb.Method_METHOD_BLOB_PULL, s.pull)
	rpc.Handle(m, pb.Method_METHOD_BLOB_UPLOAD, s.upload)
	rpc.Handle(m, pb.Method_METHOD_DISK_STATUS, s.status)
	rpc.Handle(m, pb.Method_METHOD_BLOB_COMPARE, s.compare)
	rpc.Handle(m, pb.Method_METHOD_BLOB_LIST, s.list)
	rpc.Handle(m, pb.Method_METHOD_BLOB_CONFIRM, s.confirm)
	rpc.Handle(m, pb.Method_METHOD_DISK_RESERVE, s.reserve)
	rpc.Handle(m, pb.Method_METHOD_RELAY, s.relay)
	pb.RegisterBlobsServer(r, s)
}

// Run forgets uploads that nobody goes on with, until ctx ends; then it drops
// all that lie there. The gRPC server stops first: Run waits for its streams.
func (s *Server) Run(ctx context.Context) error {
	s.uploads.run(ctx)
	s.receiving.Wait()
	return nil
}
