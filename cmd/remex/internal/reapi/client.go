// Package reapi is a small client of the Remote Execution API: it uploads and
// downloads blobs, builds input roots, and runs commands. It speaks nothing but
// the public protocol, to any server of it, and verifies what it is sent.
package reapi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"cloud.google.com/go/longrunning/autogen/longrunningpb"
	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"github.com/google/uuid"
	"google.golang.org/genproto/googleapis/bytestream"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

const (
	// defaultBatch is what a server that names no limit takes in one batch.
	defaultBatch = 4<<20 - 64<<10
	// maxMessage is the largest message that we take.
	maxMessage = 16 << 20
	// attempts bounds how often a call is tried while the server is not to
	// be had; pauses double from firstPause.
	attempts   = 6
	firstPause = 200 * time.Millisecond
	longEnough = 30 * time.Second

	metadataKey = "build.bazel.remote.execution.v2.requestmetadata-bin"
)

// Client is one connection to a cluster. Its methods are safe for concurrent use.
type Client struct {
	conn     *grpc.ClientConn
	target   string // for errors
	instance string
	fn       digest.Function
	batch    int64 // bytes in a batch
	caps     *repb.ServerCapabilities

	cas   repb.ContentAddressableStorageClient
	bytes bytestream.ByteStreamClient
	exec  repb.ExecutionClient
	ops   longrunningpb.OperationsClient
}

// Options say where to connect and as what.
type Options struct {
	Target   string // grpc://host:port or host:port
	Instance string // the REAPI instance name
	Version  string // of this program
}

// Address takes a cluster's address apart.
func Address(target string) (string, error) {
	scheme, addr, ok := strings.Cut(target, "://")
	switch {
	case !ok:
		addr = target
	case scheme == "grpcs":
		return "", fmt.Errorf("%s: TLS is not available yet; use grpc:// on the cluster's own machine", target)
	case scheme != "grpc":
		return "", fmt.Errorf("%s: addresses begin with grpc://", target)
	}
	if _, _, err := net.SplitHostPort(addr); err != nil {
		return "", fmt.Errorf("%s: write the address as grpc://host:port", target)
	}
	return addr, nil
}

// Conn opens a connection; nothing is sent yet.
func Conn(o Options) (*grpc.ClientConn, error) {
	addr, err := Address(o.Target)
	if err != nil {
		return nil, err
	}
	return grpc.NewClient("passthrough:///"+addr,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUserAgent("remex/"+o.Version),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 20 * time.Second}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
	)
}

// Dial connects and asks what the server can do.
func Dial(ctx context.Context, o Options) (*Client, error) {
	conn, err := Conn(o)
	if err != nil {
		return nil, err
	}
	c := &Client{
		conn: conn, target: o.Target, instance: o.Instance,
		cas:   repb.NewContentAddressableStorageClient(conn),
		bytes: bytestream.NewByteStreamClient(conn),
		exec:  repb.NewExecutionClient(conn),
		ops:   longrunningpb.NewOperationsClient(conn),
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	c.caps, err = repb.NewCapabilitiesClient(conn).GetCapabilities(ctx, &repb.GetCapabilitiesRequest{InstanceName: o.Instance})
	if err == nil {
		err = c.agree()
	}
	if err != nil {
		return nil, errors.Join(Explain(o.Target, err), conn.Close())
	}
	return c, nil
}

// agree settles the digest function and the size of batches.
func (c *Client) agree() error {
	cache := c.caps.GetCacheCapabilities()
	if cache == nil {
		return errors.New("the server announces no cache")
	}
	for _, v := range cache.DigestFunctions {
		f := digest.Function(v)
		if f.Computable() && (c.fn == 0 || f == digest.SHA256) {
			c.fn = f
		}
	}
	if c.fn == 0 {
		return fmt.Errorf("the server announces no digest function that this client knows: %v", cache.DigestFunctions)
	}
	c.batch = cache.MaxBatchTotalSizeBytes
	if c.batch <= 0 || c.batch > defaultBatch {
		c.batch = defaultBatch
	}
	return nil
}

// Close ends the connection.
func (c *Client) Close() { _ = c.conn.Close() }

// Function is what blobs are named with.
func (c *Client) Function() digest.Function { return c.fn }

// Explain says what a failed call to target means for the person before the
// screen. Errors that are not the server's stay as they are.
func Explain(target string, err error) error {
	st, ok := status.FromError(err)
	if !ok || err == nil {
		return err
	}
	switch st.Code() {
	case codes.Unavailable:
		if !disconnected(st) {
			return fmt.Errorf("%s cannot serve this now: %s (`remex status` tells which nodes are missing)", target, text(st))
		}
		return fmt.Errorf("%s cannot be reached: %s (is the cluster running? `remex dev` starts one; --cluster or REMEX_CLUSTER names another)", target, text(st))
	case codes.DeadlineExceeded:
		return fmt.Errorf("%s does not answer in time: %s", target, text(st))
	case codes.Unimplemented:
		return fmt.Errorf("%s does not offer this: %s", target, text(st))
	}
	return fmt.Errorf("%s: %s (%s)", target, text(st), st.Code())
}

// disconnected reports whether gRPC itself made the status, because it has no
// connection or lost it.
func disconnected(st *status.Status) bool {
	for _, s := range []string{"connection error", "error reading from server", "the client connection is closing", "transport"} {
		if strings.Contains(st.Message(), s) {
			return true
		}
	}
	return false
}

// text is what a status says, its details included.
func text(st *status.Status) string {
	var more []string
	for _, d := range st.Details() {
		if f, ok := d.(*errdetails.PreconditionFailure); ok {
			for _, v := range f.Violations {
				more = append(more, strings.TrimSpace(fmt.Sprintf("%s %s %s", strings.ToLower(v.Type), v.Subject, v.Description)))
			}
		}
	}
	const most = 10
	if n := len(more); n > most {
		more = append(more[:most], fmt.Sprintf("and %d more", n-most))
	}
	if len(more) == 0 {
		return st.Message()
	}
	return st.Message() + ": " + strings.Join(more, "; ")
}

// withMetadata says to the server who calls, and for which action.
func withMetadata(ctx context.Context, invocation, action string) context.Context {
	b, err := proto.Marshal(&repb.RequestMetadata{
		ToolDetails: &repb.ToolDetails{ToolName: "remex"}, ToolInvocationId: invocation, ActionId: action,
	})
	if err != nil {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, metadataKey, string(b))
}

// NewContext marks ctx as one invocation of this program.
func NewContext(ctx context.Context) context.Context {
	return withMetadata(ctx, uuid.NewString(), "")
}

// retry calls f until it succeeds, fails for good, or was tried often and long
// enough: a server waits for its workers by itself.
// f returns true when it got further than before.
func retry(ctx context.Context, f func() (progress bool, err error)) error {
	pause, left, since := firstPause, attempts, time.Now()
	for {
		progress, err := f()
		if err == nil || !transient(err) || ctx.Err() != nil {
			return err
		}
		if progress {
			pause, left, since = firstPause, attempts, time.Now()
		}
		if left--; left <= 0 || time.Since(since) > longEnough {
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return err
		}
		pause *= 2
	}
}

// transient reports whether another try may help.
func transient(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.Aborted, codes.Internal:
		return true
	}
	return false
}

func toProto(d digest.Digest) *repb.Digest {
	return &repb.Digest{Hash: d.Hash(), SizeBytes: d.Size()}
}

func (c *Client) fromProto(p *repb.Digest) (digest.Digest, error) {
	return digest.Parse(c.fn, p.GetHash(), p.GetSizeBytes())
}

// ParseDigest reads hash/size, or function/hash/size.
func ParseDigest(s string) (digest.Digest, error) {
	parts := strings.Split(strings.TrimSpace(s), "/")
	var fn digest.Function
	ok := false
	switch len(parts) {
	case 2:
		fn, ok = digest.Infer(len(parts[0]))
	case 3:
		fn, ok = digest.FunctionByName(parts[0])
		parts = parts[1:]
	}
	var size int64
	if ok {
		var err error
		size, err = strconv.ParseInt(parts[1], 10, 64)
		ok = err == nil
	}
	if !ok {
		return digest.Digest{}, fmt.Errorf("%q is no digest: write hash/size, or function/hash/size", s)
	}
	return digest.Parse(fn, parts[0], size)
}
