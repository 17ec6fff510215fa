// Package frontend owns the services that clients call: the whole Remote
// Execution API with the ByteStream, Operations, health and reflection
// services that belong to it.
//
// It is the border between the protocol and the cluster: what is malformed is
// refused here, with INVALID_ARGUMENT and a BadRequest detail that names the
// field; what passes on are values of package digest and stored bytes. It keeps
// no state of its own beyond the calls in flight, whose buffers share one
// budget of bytes. It does not decide where blobs lie, which worker runs what,
// or who may call.
package frontend

import (
	"log/slog"
	"sync/atomic"
	"time"

	"cloud.google.com/go/longrunning/autogen/longrunningpb"
	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"

	"github.com/remex-build/terraform-provider-remex/daemon/rpc"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/near"
)

// Sizes of messages. A client's library receives at most 4 MiB unless told
// otherwise; the margin holds what surrounds the data.
const (
	maxMessage = 4 << 20
	margin     = 64 << 10
	// maxBatch is announced as max_batch_total_size_bytes.
	maxBatch = maxMessage - margin
)

// Options are what a Frontend stands on.
type Options struct {
	Store       Store
	Uploads     Uploads
	ActionCache ActionCache
	Executor    Executor
	// Answers and Incoming bound the bytes of calls in flight: of what clients
	// are to read, and of what they bring. They are apart, as a client that
	// copies may wait with the one for the other. Nil makes one of 64 MiB.
	Answers, Incoming *rpc.Budget
	// MaxUploads is how many calls may bring blobs at a time, as each takes a
	// flow-control window of memory; 0 means 1,000. Others wait for up to ten
	// seconds, and are then refused.
	MaxUploads int
	// Owners names the workers whose disks own a partition, which are the
	// nearest to an action that has large files in it; nil means that nobody
	// knows.
	Owners func(partition uint16) []string
	// MaxTimeout is the longest timeout that an action may ask for, and the
	// one of an action that asks for none; 0 means 24 hours.
	MaxTimeout time.Duration
	Log        *slog.Logger
	Registerer prometheus.Registerer
}

// Frontend serves clients. It is safe for concurrent use.
type Frontend struct {
	store    Store
	uploads  Uploads
	actions  ActionCache
	executor Executor

	answers    *rpc.Budget
	incoming   *rpc.Budget
	places     *rpc.Budget // of calls that bring blobs, one each
	recent     recent
	near       *near.Map
	learning   atomic.Bool // one call learns
	maxTimeout time.Duration
	log        *slog.Logger
	metrics    *metrics
	health     *health.Server
}

// New makes a Frontend, which is not serving (in the sense of the health
// service) until SetServing says so.
func New(o Options) *Frontend {
	f := &Frontend{
		store: o.Store, uploads: o.Uploads, actions: o.ActionCache, executor: o.Executor,
		answers: o.Answers, incoming: o.Incoming, maxTimeout: o.MaxTimeout,
		log: o.Log.With("part", "frontend"), metrics: newMetrics(o.Registerer), health: health.NewServer(),
	}
	for _, b := range []**rpc.Budget{&f.answers, &f.incoming} {
		if *b == nil {
			*b = rpc.NewBudget(64 << 20)
		}
	}
	if o.Owners == nil {
		o.Owners = func(uint16) []string { return nil }
	}
	f.near = near.New(o.Owners)
	if o.MaxUploads == 0 {
		o.MaxUploads = 1000
	}
	f.places = rpc.NewBudget(int64(o.MaxUploads))
	if f.maxTimeout == 0 {
		f.maxTimeout = 24 * time.Hour
	}
	f.SetServing(false)
	return f
}

// ServerOptions are the options that a server needs for Register's services,
// beside rpc.PublicServerOptions.
func (f *Frontend) ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(f.unary),
		grpc.ChainStreamInterceptor(f.stream),
	}
}

// Register registers every service, and reflection over all that s serves if s
// can tell.
func (f *Frontend) Register(s grpc.ServiceRegistrar) {
	repb.RegisterCapabilitiesServer(s, capabilities{})
	s.RegisterService(casDesc(), cas{Frontend: f})
	s.RegisterService(actionCacheDesc(), actionCache{Frontend: f})
	repb.RegisterExecutionServer(s, execution{Frontend: f})
	s.RegisterService(&byteStreamDesc, byteStream{f})
	longrunningpb.RegisterOperationsServer(s, operations{Frontend: f})
	healthpb.RegisterHealthServer(s, f.health)
	if r, ok := s.(reflection.GRPCServer); ok {
		reflection.Register(r)
	}
}

// SetServing tells balancers and clients, through the health service, whether
// to send calls here. Calls are served in either case.
func (f *Frontend) SetServing(ready bool) {
	st := healthpb.HealthCheckResponse_NOT_SERVING
	if ready {
		st = healthpb.HealthCheckResponse_SERVING
	}
	for _, service := range []string{
		"",
		repb.Capabilities_ServiceDesc.ServiceName,
		repb.ContentAddressableStorage_ServiceDesc.ServiceName,
		repb.ActionCache_ServiceDesc.ServiceName,
		repb.Execution_ServiceDesc.ServiceName,
		byteStreamDesc.ServiceName,
		longrunningpb.Operations_ServiceDesc.ServiceName,
	} {
		f.health.SetServingStatus(service, st)
	}
}
