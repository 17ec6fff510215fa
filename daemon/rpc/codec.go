package rpc

import (
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // the codec that Codec leans on
	"google.golang.org/grpc/mem"
)

// Codec is gRPC's protobuf codec, which besides passes the data of a *Bulk
// through without copying it. Both ends of a connection may use it or not: the
// bytes on the wire are the same.
type Codec struct{}

var plain = encoding.GetCodecV2("proto")

// Name is the content subtype.
func (Codec) Name() string { return plain.Name() }

// Marshal encodes a *Bulk or a protobuf message.
func (Codec) Marshal(v any) (mem.BufferSlice, error) {
	if b, ok := v.(*Bulk); ok {
		return b.marshal()
	}
	return plain.Marshal(v)
}

// Unmarshal decodes into a *Bulk or a protobuf message.
func (Codec) Unmarshal(data mem.BufferSlice, v any) error {
	if b, ok := v.(*Bulk); ok {
		return b.unmarshal(data)
	}
	return plain.Unmarshal(data, v)
}
