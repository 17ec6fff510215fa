package rpc

import (
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// Bulk is a message whose one large bytes field travels apart from the rest, so
// that its bytes are never copied: what was received stays in the transport's
// buffers, and what is sent stays in the sender's. It is given to SendMsg and
// RecvMsg of any stream in place of the message, and is the same on the wire.
//
// It owns a reference to Data. RecvMsg frees what it held before; whoever made
// it calls Free when done with it. SendMsg takes references of its own, so that
// Free may follow at once. It is not safe for concurrent use.
type Bulk struct {
	// Head is the message without the large field; nil when it has no other.
	Head proto.Message
	// Field is the number of the large field.
	Field protowire.Number
	// Data is the content of the large field. Memory that it refers to must not
	// be written again, even after SendMsg has returned: use Fill, or a buffer
	// of a mem.BufferPool.
	Data mem.BufferSlice
}

// Len is the number of bytes of data.
func (b *Bulk) Len() int { return b.Data.Len() }

// Free gives up the data.
func (b *Bulk) Free() {
	b.Data.Free()
	b.Data = nil
}

// Chunker is a reader that hands out its own buffers. Chunk returns the next
// bytes, at least one and at most n, of which the caller owns references; at
// the end it returns io.EOF.
type Chunker interface {
	Chunk(n int) (mem.BufferSlice, error)
}

// Fill replaces the data with up to n bytes of r: with buffers of r's own if it
// is a Chunker, which may return fewer before its end, else with a pooled one.
// It returns how many they are, and io.EOF only if there was none left.
func (b *Bulk) Fill(r io.Reader, n int) (int, error) {
	b.Free()
	if n <= 0 {
		return 0, nil
	}
	if c, ok := r.(Chunker); ok {
		var err error
		b.Data, err = c.Chunk(n)
		return b.Len(), err
	}
	buf := pool.Get(n)
	k, err := io.ReadFull(r, *buf)
	if k == 0 {
		pool.Put(buf)
		return 0, err
	}
	*buf = (*buf)[:k]
	b.Data = mem.BufferSlice{mem.NewBuffer(buf, pool)}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil
	}
	return k, err
}

// Cut takes up to n bytes off the front of the data, and hands over the
// references to them.
func (b *Bulk) Cut(n int) mem.BufferSlice {
	var front mem.BufferSlice
	for n > 0 && len(b.Data) > 0 {
		first := b.Data[0]
		size := first.Len()
		if size > n {
			front = append(front, first.Slice(0, n))
			b.Data[0] = first.Slice(n, size)
			first.Free()
			return front
		}
		front = append(front, first)
		b.Data = b.Data[1:]
		n -= size
	}
	return front
}

// WriteTo writes the data to w and keeps it.
func (b *Bulk) WriteTo(w io.Writer) (int64, error) {
	var sum int64
	for _, part := range b.Data {
		n, err := w.Write(part.ReadOnlyData())
		sum += int64(n)
		if err != nil {
			return sum, err
		}
	}
	return sum, nil
}

func (b *Bulk) marshal() (mem.BufferSlice, error) {
	var head []byte
	if b.Head != nil {
		var err error
		if head, err = proto.Marshal(b.Head); err != nil {
			return nil, fmt.Errorf("encode head: %w", err)
		}
	}
	n := b.Data.Len()
	if n == 0 {
		return mem.BufferSlice{mem.SliceBuffer(head)}, nil
	}
	head = protowire.AppendTag(head, b.Field, protowire.BytesType)
	head = protowire.AppendVarint(head, uint64(n))
	out := make(mem.BufferSlice, 0, 1+len(b.Data))
	out = append(out, mem.SliceBuffer(head))
	b.Data.Ref()
	return append(out, b.Data...), nil
}

var errWire = errors.New("malformed message")

func (b *Bulk) unmarshal(data mem.BufferSlice) error {
	b.Free()
	c := cursor{data: data, left: data.Len()}
	var head []byte
	for c.left > 0 {
		tag, err := c.varint()
		if err != nil {
			return err
		}
		num, typ := protowire.DecodeTag(tag)
		if num < protowire.MinValidNumber {
			return errWire
		}
		if num == b.Field && typ == protowire.BytesType {
			n, err := c.length()
			if err != nil {
				return err
			}
			b.Free() // the last of several wins, as in protobuf
			b.Data = c.slice(n)
			continue
		}
		head = protowire.AppendVarint(head, tag)
		if head, err = c.field(head, typ); err != nil {
			return err
		}
	}
	if b.Head == nil {
		return nil
	}
	return proto.Unmarshal(head, b.Head)
}

// cursor reads a message that is spread over several buffers.
type cursor struct {
	data mem.BufferSlice
	off  int // in data[0]
	left int // in all of data
}

func (c *cursor) byte() (byte, error) {
	if c.left == 0 {
		return 0, errWire
	}
	c.settle()
	x := c.data[0].ReadOnlyData()[c.off]
	c.off++
	c.left--
	return x, nil
}

// settle skips the buffers that are used up. There must be bytes left.
func (c *cursor) settle() {
	for c.off == c.data[0].Len() {
		c.data, c.off = c.data[1:], 0
	}
}

func (c *cursor) varint() (uint64, error) {
	var v uint64
	for shift := 0; shift < 64; shift += 7 {
		x, err := c.byte()
		if err != nil {
			return 0, err
		}
		if shift == 63 && x > 1 {
			return 0, errWire
		}
		v |= uint64(x&0x7f) << shift
		if x < 0x80 {
			return v, nil
		}
	}
	return 0, errWire
}

// length reads the length of a bytes field whose content is there.
func (c *cursor) length() (int, error) {
	n, err := c.varint()
	if err != nil {
		return 0, err
	}
	if n > uint64(c.left) {
		return 0, errWire
	}
	return int(n), nil
}

// slice returns references of the caller's to the next n bytes.
func (c *cursor) slice(n int) mem.BufferSlice {
	var out mem.BufferSlice
	for n > 0 {
		c.settle()
		k := min(n, c.data[0].Len()-c.off)
		out = append(out, c.data[0].Slice(c.off, c.off+k))
		c.off += k
		c.left -= k
		n -= k
	}
	return out
}

// field appends to head the value of a field of type typ.
func (c *cursor) field(head []byte, typ protowire.Type) ([]byte, error) {
	var n int
	switch typ {
	case protowire.VarintType:
		v, err := c.varint()
		return protowire.AppendVarint(head, v), err
	case protowire.Fixed32Type:
		n = 4
	case protowire.Fixed64Type:
		n = 8
	case protowire.BytesType:
		var err error
		if n, err = c.length(); err != nil {
			return nil, err
		}
		head = protowire.AppendVarint(head, uint64(n))
	default: // groups are no part of proto3
		return nil, errWire
	}
	if n > c.left {
		return nil, errWire
	}
	for n > 0 {
		c.settle()
		part := c.data[0].ReadOnlyData()[c.off:]
		part = part[:min(n, len(part))]
		head = append(head, part...)
		c.off += len(part)
		c.left -= len(part)
		n -= len(part)
	}
	return head, nil
}
