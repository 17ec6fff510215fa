package frontend

import (
	"context"

	bspb "google.golang.org/genproto/googleapis/bytestream"
	"google.golang.org/grpc"
)

type byteStream struct{ *Frontend }

// byteStreamDesc is the service as any grpc.ServiceRegistrar takes it: the
// generated one can only be registered with a *grpc.Server.
var byteStreamDesc = grpc.ServiceDesc{
	ServiceName: "google.bytestream.ByteStream",
	HandlerType: (*byteStreamServer)(nil),
	Methods:     []grpc.MethodDesc{{MethodName: "QueryWriteStatus", Handler: queryWriteStatus}},
	Streams: []grpc.StreamDesc{
		{StreamName: "Read", ServerStreams: true, Handler: func(srv any, ss grpc.ServerStream) error {
			req := &bspb.ReadRequest{}
			if err := ss.RecvMsg(req); err != nil {
				return err
			}
			return srv.(byteStreamServer).read(req, ss)
		}},
		{StreamName: "Write", ClientStreams: true, Handler: func(srv any, ss grpc.ServerStream) error {
			return srv.(byteStreamServer).write(ss)
		}},
	},
	Metadata: "google/bytestream/bytestream.proto",
}

type byteStreamServer interface {
	read(*bspb.ReadRequest, grpc.ServerStream) error
	write(grpc.ServerStream) error
	queryWriteStatus(context.Context, *bspb.QueryWriteStatusRequest) (*bspb.QueryWriteStatusResponse, error)
}

func queryWriteStatus(srv any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) { //nolint:revive // grpc's signature
	req := &bspb.QueryWriteStatusRequest{}
	if err := decode(req); err != nil {
		return nil, err
	}
	serve := func(ctx context.Context, req any) (any, error) {
		return srv.(byteStreamServer).queryWriteStatus(ctx, req.(*bspb.QueryWriteStatusRequest))
	}
	if intercept == nil {
		return serve(ctx, req)
	}
	return intercept(ctx, req, &grpc.UnaryServerInfo{Server: srv, FullMethod: "/google.bytestream.ByteStream/QueryWriteStatus"}, serve)
}
