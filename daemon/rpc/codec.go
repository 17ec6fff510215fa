package rpc

import (
	"fmt"

	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // the codec that Codec leans on
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

// Codec is gRPC's protobuf codec, which besides passes the data of a *Bulk
// through without copying it. Both ends of a connection may use it or not: the
// bytes on the wire are the same.
type Codec struct{}

var plain = encoding.GetCodecV2("proto")

// Name is the content subtype.
func (Codec) Name() string { return plain.Name() }

// Marshal encodes a *Bulk, a protobuf message, or what Hold made of either.
func (c Codec) Marshal(v any) (mem.BufferSlice, error) {
	switch m := v.(type) {
	case *Bulk:
		return m.marshal()
	case *holding:
		return m.marshal(c)
	case proto.Message:
		return marshal(m)
	}
	return plain.Marshal(v)
}

// marshal encodes m into a buffer of the pool.
func marshal(m proto.Message) (mem.BufferSlice, error) {
	buf := pool.Get(proto.Size(m))
	b, err := proto.MarshalOptions{UseCachedSize: true}.MarshalAppend((*buf)[:0], m)
	if err != nil {
		pool.Put(buf)
		return nil, fmt.Errorf("encode %T: %w", m, err)
	}
	*buf = b
	return mem.BufferSlice{mem.NewBuffer(buf, pool)}, nil
}

// Unmarshal decodes into a *Bulk or a protobuf message.
func (Codec) Unmarshal(data mem.BufferSlice, v any) error {
	switch m := v.(type) {
	case *Bulk:
		return m.unmarshal(data)
	case proto.Message:
		whole := data.MaterializeToBuffer(pool)
		defer whole.Free() // protobuf copies what it keeps
		return proto.Unmarshal(whole.ReadOnlyData(), m)
	}
	return plain.Unmarshal(data, v)
}
