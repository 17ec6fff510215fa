package frontend_test

import (
	"context"
	"log/slog"
	"net"
	"testing"
	"time"

	"cloud.google.com/go/longrunning/autogen/longrunningpb"
	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	bspb "google.golang.org/genproto/googleapis/bytestream"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	"github.com/remex-build/terraform-provider-remex/daemon/actioncache"
	"github.com/remex-build/terraform-provider-remex/daemon/blob/replica"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	"github.com/remex-build/terraform-provider-remex/daemon/frontend"
	"github.com/remex-build/terraform-provider-remex/daemon/frontend/fronttest"
	"github.com/remex-build/terraform-provider-remex/daemon/rpc"
	"github.com/remex-build/terraform-provider-remex/daemon/scheduler"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a frontend on fakes, and a client of it with default settings: it
// receives no message above 4 MiB.
type world struct {
	store    *fronttest.Store
	actions  *fronttest.ActionCache
	executor *fronttest.Executor
	registry *prometheus.Registry
	front    *frontend.Frontend
	conn     *grpc.ClientConn
	dial     func() *grpc.ClientConn // another one
	answers  *rpc.Budget
	incoming *rpc.Budget
}

const budget = 16 << 20

func start(t *testing.T, set ...func(*frontend.Options)) *world {
	t.Helper()
	w := &world{
		store: &fronttest.Store{}, actions: &fronttest.ActionCache{}, executor: &fronttest.Executor{},
		registry: prometheus.NewRegistry(), answers: rpc.NewBudget(budget), incoming: rpc.NewBudget(budget),
	}
	o := frontend.Options{
		Store: w.store, Uploads: w.store, ActionCache: w.actions, Executor: w.executor,
		MaxTimeout: time.Hour, Log: slog.New(slog.DiscardHandler), Registerer: w.registry,
		Answers: w.answers, Incoming: w.incoming,
	}
	for _, s := range set {
		s(&o)
	}
	w.front = frontend.New(o)
	server := grpc.NewServer(append(rpc.PublicServerOptions(rpc.StreamWindow), w.front.ServerOptions()...)...)
	w.front.Register(server)
	l := bufconn.Listen(1 << 20)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	var conns []*grpc.ClientConn
	w.dial = func() *grpc.ClientConn {
		conn, err := grpc.NewClient("passthrough:///bufconn", grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
		return conn
	}
	w.conn = w.dial()
	t.Cleanup(func() {
		for _, conn := range conns {
			_ = conn.Close()
		}
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return w
}

// fill takes all there is of the budgets, once what calls held is back.
func (w *world) fill(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for _, b := range []*rpc.Budget{w.answers, w.incoming} {
		if err := b.Acquire(ctx, budget); err != nil {
			t.Fatal("what calls held has not come back:", err)
		}
	}
}

// empty gives it back.
func (w *world) empty(t *testing.T) {
	w.answers.Release(t.Context(), budget)
	w.incoming.Release(t.Context(), budget)
}

func (w *world) cas() repb.ContentAddressableStorageClient {
	return repb.NewContentAddressableStorageClient(w.conn)
}

func (w *world) bytes() bspb.ByteStreamClient { return bspb.NewByteStreamClient(w.conn) }

func (w *world) ac() repb.ActionCacheClient { return repb.NewActionCacheClient(w.conn) }

func (w *world) exec() repb.ExecutionClient { return repb.NewExecutionClient(w.conn) }

func (w *world) operations() longrunningpb.OperationsClient {
	return longrunningpb.NewOperationsClient(w.conn)
}

// add stores a message as a blob.
func (w *world) add(t *testing.T, m proto.Message) *repb.Digest {
	t.Helper()
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return wire(w.store.Add(b))
}

func wire(d digest.Digest) *repb.Digest { return &repb.Digest{Hash: d.Hash(), SizeBytes: d.Size()} }

func sha(s string) digest.Digest { return digest.Of(digest.SHA256, []byte(s)) }

// wantCode demands a status code.
func wantCode(t *testing.T, err error, code codes.Code) {
	t.Helper()
	if got := status.Code(err); got != code {
		t.Fatalf("got %v (%v), want %v", got, err, code)
	}
}

// wantInvalid demands INVALID_ARGUMENT with a BadRequest that names the field.
func wantInvalid(t *testing.T, err error, field string) {
	t.Helper()
	wantCode(t, err, codes.InvalidArgument)
	for _, d := range status.Convert(err).Details() {
		if b, ok := d.(*errdetails.BadRequest); ok && len(b.FieldViolations) == 1 {
			if got := b.FieldViolations[0].Field; got != field {
				t.Fatalf("field %q, want %q (%v)", got, field, err)
			}
			return
		}
	}
	t.Fatalf("no BadRequest in %v", err)
}

// wantMissing demands FAILED_PRECONDITION with one PreconditionFailure and
// nothing else, which lists the blobs in this order.
func wantMissing(t *testing.T, err error, subjects ...string) {
	t.Helper()
	wantCode(t, err, codes.FailedPrecondition)
	details := status.Convert(err).Details()
	if len(details) != 1 {
		t.Fatalf("%d details, want 1", len(details))
	}
	f, ok := details[0].(*errdetails.PreconditionFailure)
	if !ok || len(f.Violations) != len(subjects) {
		t.Fatalf("details %v, want the subjects %v", details, subjects)
	}
	for i, v := range f.Violations {
		if v.Type != "MISSING" || v.Subject != subjects[i] {
			t.Errorf("violation %v, want MISSING %s", v, subjects[i])
		}
	}
}

// What the daemon puts in the fakes' places.
var (
	_ frontend.Store       = (*replica.Store)(nil)
	_ frontend.ActionCache = (*actioncache.Client)(nil)
	_ frontend.Executor    = (*scheduler.Service)(nil)
	_                      = frontend.UploadsOf
)
