package rpc

import (
	"context"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/keepalive"
)

// Sizes of messages. Clients' libraries receive at most 4 MiB unless told
// otherwise, so the public port sends no more than that.
const (
	MaxPublicSend = 4 << 20
	MaxMessage    = 16 << 20
)

// ioSize is how many bytes one read or write of a connection moves at most.
// What gRPC takes by itself, 32 KiB, costs a blob several times the system
// calls. Connections hold such buffers only while bytes move.
const ioSize = 128 << 10

// Flow-control windows: what a sender may have under way before the receiver has
// taken it, and so what a stream costs a receiver that doesn't. They are fixed,
// since gRPC's own estimate of what a line can carry lets each of thousands of
// streams that wait have up to 16 MiB. Between nodes a millisecond apart a
// stream of this window still moves 256 MB/s.
const (
	StreamWindow = 256 << 10
	connWindow   = 16 << 20
)

// dialTimeout is how long a TCP and TLS handshake may take: nodes share a
// network, and a caller has other replicas to ask.
const dialTimeout = 3 * time.Second

// PublicServerOptions are the options of a server that clients reach, to each of
// whose streams window bytes may be under way, 64 KiB at least. Clients with one
// connection run all their jobs over it, hence the streams.
func PublicServerOptions(window int32) []grpc.ServerOption {
	return append(serverOptions(window), grpc.MaxConcurrentStreams(1<<20), grpc.MaxRecvMsgSize(MaxMessage), grpc.MaxSendMsgSize(MaxPublicSend),
		grpc.StatsHandler(connections{}))
}

// ClusterServerOptions are the options of a server that only nodes reach.
func ClusterServerOptions() []grpc.ServerOption {
	return append(serverOptions(StreamWindow), grpc.MaxConcurrentStreams(1<<20), grpc.MaxRecvMsgSize(MaxMessage), grpc.MaxSendMsgSize(MaxMessage))
}

// serverOptions: balancers drop connections that are silent for minutes (350 s
// on AWS, 600 s on GCP), hence the pings; clients ping as often as every few
// seconds, and a server that minds closes their connection (ENHANCE_YOUR_CALM).
func serverOptions(window int32) []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 20 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.ForceServerCodecV2(Codec{}),
		experimental.BufferPool(pool),
		grpc.ReadBufferSize(ioSize),
		grpc.WriteBufferSize(ioSize),
		grpc.StaticStreamWindowSize(window),
		grpc.StaticConnWindowSize(connWindow),
	}
}

// DialOptions are the options of connections to servers with the options above.
// Nil credentials mean plaintext. A refused connection fails calls at once, and
// is tried again after 100 ms, at longest after a second.
func DialOptions(creds credentials.TransportCredentials) []grpc.DialOption {
	if creds == nil {
		creds = insecure.NewCredentials()
	}
	dialer := &net.Dialer{Timeout: dialTimeout}
	return []grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp", addr)
		}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: dialTimeout,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 10 * time.Second}),
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(MaxMessage), grpc.MaxCallSendMsgSize(MaxMessage), grpc.ForceCodecV2(Codec{})),
		experimental.WithBufferPool(pool),
		grpc.WithReadBufferSize(ioSize),
		grpc.WithWriteBufferSize(ioSize),
		grpc.WithStaticStreamWindowSize(StreamWindow),
		grpc.WithStaticConnWindowSize(connWindow),
	}
}

// dial makes a connection to addr (host:port), which connects when first used.
func dial(addr string, creds credentials.TransportCredentials, more ...grpc.DialOption) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+addr, append(DialOptions(creds), more...)...)
}

// LoopbackOnly refuses every address that other machines could reach or that
// lies on one: plaintext is for loopback.
func LoopbackOnly(addr string) error {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return &Error{codes.InvalidArgument, fmt.Sprintf("address %q is not host:port", addr)}
	}
	if ip := net.ParseIP(host); host == "localhost" || ip != nil && ip.IsLoopback() {
		return nil
	}
	return &Error{codes.FailedPrecondition, fmt.Sprintf("plaintext is for loopback addresses only, not for %q", addr)}
}
