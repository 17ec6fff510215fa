package rpc

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/bytestream"
	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"pgregory.net/rapid"
)

// counted is a pool that knows how many buffers are out.
type counted struct {
	mem.BufferPool
	out int
}

func (c *counted) Get(n int) *[]byte {
	c.out++
	return c.BufferPool.Get(n)
}

func (c *counted) Put(b *[]byte) {
	c.out--
	clear(*b) // whoever still reads it will see
	c.BufferPool.Put(b)
}

// split cuts b into pooled buffers, as a transport does.
func split(t *rapid.T, pool mem.BufferPool, b []byte) mem.BufferSlice {
	var s mem.BufferSlice
	for len(b) > 0 {
		n := min(len(b), rapid.SampledFrom([]int{1, 2, 3, 5000}).Draw(t, "n"))
		buf := pool.Get(max(n, 2000)) // gRPC pools no smaller ones
		k := copy(*buf, b[:n])
		*buf = (*buf)[:k]
		s = append(s, mem.NewBuffer(buf, pool))
		b = b[n:]
	}
	return s
}

func drawWrite(t *rapid.T) *bytestream.WriteRequest {
	return &bytestream.WriteRequest{
		ResourceName: rapid.String().Draw(t, "name"),
		WriteOffset:  rapid.Int64().Draw(t, "offset"),
		FinishWrite:  rapid.Bool().Draw(t, "finish"),
		Data:         bytes.Repeat(rapid.SliceOfN(rapid.Byte(), 0, 20).Draw(t, "data"), rapid.SampledFrom([]int{1, 500}).Draw(t, "times")),
	}
}

func TestBulkReadsWhatProtobufWrites(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pool := &counted{BufferPool: mem.NewTieredBufferPool(4096, 65536)}
		want := drawWrite(t)
		wire, err := proto.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		got := &bytestream.WriteRequest{ResourceName: "from the message before"}
		b := Bulk{Head: got, Field: 10}
		for range 2 { // the second takes the place of the first
			data := split(t, pool, wire)
			if err := (Codec{}).Unmarshal(data, &b); err != nil {
				t.Fatal(err)
			}
			data.Free() // as gRPC does
		}
		var out bytes.Buffer
		b.WriteTo(&out)
		if !bytes.Equal(out.Bytes(), want.Data) || b.Len() != len(want.Data) {
			t.Fatal("the data differs")
		}
		b.Free()
		b.Free()
		if pool.out != 0 {
			t.Fatalf("%d buffers were not freed", pool.out)
		}
		want.Data = nil
		if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
			t.Fatal(diff)
		}
	})
}

func TestProtobufReadsWhatBulkWrites(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pool := &counted{BufferPool: mem.NewTieredBufferPool(4096, 65536)}
		want := drawWrite(t)
		head := proto.CloneOf(want)
		head.Data = nil
		b := Bulk{Head: head, Field: 10, Data: split(t, pool, want.Data)}
		wire, err := Codec{}.Marshal(&b)
		if err != nil {
			t.Fatal(err)
		}
		b.Free() // may follow at once
		got := &bytestream.WriteRequest{}
		if err := proto.Unmarshal(wire.Materialize(), got); err != nil {
			t.Fatal(err)
		}
		wire.Free()
		if pool.out != 0 {
			t.Fatalf("%d buffers were not freed", pool.out)
		}
		if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
			t.Fatal(diff)
		}
	})
}

func TestFillReadsUpToItsBound(t *testing.T) {
	b := Bulk{Field: 1}
	r := strings.NewReader(strings.Repeat("x", 10_000))
	for _, want := range []int{6000, 4000} {
		if n, err := b.Fill(r, 6000); n != want || b.Len() != want || err != nil {
			t.Errorf("got %d, %v", n, err)
		}
	}
	if n, err := b.Fill(r, 6000); n != 0 || b.Len() != 0 || err != io.EOF {
		t.Errorf("at the end: %d, %v", n, err)
	}
	broken := io.MultiReader(strings.NewReader("abc"), errReader{})
	if n, err := b.Fill(broken, 10); n != 3 || b.Len() != 3 || !errors.Is(err, errRead) {
		t.Errorf("before an error: %d, %v", n, err)
	}
	b.Free()
}

// chunked hands out what it is made of.
type chunked struct {
	io.Reader
	parts mem.BufferSlice
}

func (c *chunked) Chunk(n int) (mem.BufferSlice, error) {
	if len(c.parts) == 0 {
		return nil, io.EOF
	}
	part := c.parts[:1]
	c.parts = c.parts[1:]
	return part, nil
}

func TestFillCopiesNothingOfAChunker(t *testing.T) {
	first := []byte("abc")
	b := Bulk{Field: 1}
	r := &chunked{parts: mem.BufferSlice{mem.SliceBuffer(first), mem.SliceBuffer("de")}}
	if n, err := b.Fill(r, 10); n != 3 || err != nil || &b.Data[0].ReadOnlyData()[0] != &first[0] {
		t.Errorf("got %d, %v", n, err)
	}
	if n, err := b.Fill(r, 10); n != 2 || err != nil {
		t.Errorf("then %d, %v", n, err)
	}
	if n, err := b.Fill(r, 10); n != 0 || b.Len() != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("at the end %d, %v", n, err)
	}
}

func TestCutHandsOverAllOfTheData(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pool := &counted{BufferPool: mem.NewTieredBufferPool(4096, 65536)}
		want := bytes.Repeat([]byte("abcdefg"), rapid.IntRange(0, 500).Draw(t, "n"))
		b := Bulk{Field: 1, Data: split(t, pool, want)}
		var got []byte
		for b.Len() > 0 {
			n := rapid.SampledFrom([]int{1, 10, 1000, 10_000}).Draw(t, "cut")
			left := b.Len()
			part := b.Cut(n)
			if part.Len() != min(n, left) {
				t.Fatalf("%d of %d bytes, where %d are left", part.Len(), n, left)
			}
			got = append(got, part.Materialize()...)
			part.Free()
		}
		if !bytes.Equal(got, want) {
			t.Fatal("the data differs")
		}
		if pool.out != 0 {
			t.Fatalf("%d buffers were not freed", pool.out)
		}
	})
}

func TestPoolTakesBackWhatItGave(t *testing.T) {
	for _, n := range []int{0, 1, 1000, 1024, 1025, 16 << 10, 1<<20 - 1, 1 << 20, 1<<20 + 1} {
		b := pool.Get(n)
		if len(*b) != n {
			t.Errorf("%d bytes instead of %d", len(*b), n)
		}
		*b = (*b)[:n/2]
		pool.Put(b)
		if again := pool.Get(n); len(*again) != n {
			t.Errorf("%d bytes instead of %d, once used", len(*again), n)
		}
	}
	odd := make([]byte, 3000)
	pool.Put(&odd) // not one of its sizes
	if b := pool.Get(4000); len(*b) != 4000 {
		t.Errorf("%d bytes", len(*b))
	}
}

var errRead = errors.New("read")

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errRead }

func FuzzBulkUnmarshal(f *testing.F) {
	wire, err := proto.Marshal(&bytestream.WriteRequest{ResourceName: "name", Data: []byte("data"), FinishWrite: true})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(wire, 3)
	f.Fuzz(func(t *testing.T, wire []byte, cut int) {
		cut = min(max(cut, 0), len(wire))
		got, want := &bytestream.WriteRequest{}, &bytestream.WriteRequest{}
		b := Bulk{Head: got, Field: 10}
		err := b.unmarshal(mem.BufferSlice{mem.SliceBuffer(wire[:cut]), mem.SliceBuffer(wire[cut:])})
		if err != nil {
			return // protobuf accepts more: groups in unknown fields
		}
		if err := proto.Unmarshal(wire, want); err != nil {
			t.Fatalf("protobuf refuses it: %v", err)
		}
		got.Data = b.Data.Materialize()
		// Unknown fields are the same but for the spelling of their numbers.
		got.ProtoReflect().SetUnknown(nil)
		want.ProtoReflect().SetUnknown(nil)
		if !proto.Equal(got, want) {
			t.Fatalf("got %v, not %v", got, want)
		}
	})
}

// copier is a ByteStream of which either end may use Bulk.
type copier struct {
	bytestream.UnimplementedByteStreamServer
	got  bytes.Buffer
	name string
}

func (c *copier) Write(s bytestream.ByteStream_WriteServer) error {
	head := &bytestream.WriteRequest{}
	b := Bulk{Head: head, Field: 10}
	defer b.Free()
	for {
		if err := s.RecvMsg(&b); err == io.EOF {
			return s.SendAndClose(&bytestream.WriteResponse{CommittedSize: int64(c.got.Len())})
		} else if err != nil {
			return err
		}
		if head.ResourceName != "" {
			c.name = head.ResourceName
		}
		b.WriteTo(&c.got)
	}
}

func (c *copier) Read(_ *bytestream.ReadRequest, s bytestream.ByteStream_ReadServer) error {
	b := Bulk{Field: 10}
	defer b.Free()
	r := bytes.NewReader(c.got.Bytes())
	for {
		if _, err := b.Fill(r, 1<<20); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if err := s.SendMsg(&b); err != nil {
			return err
		}
	}
}

// serveBytes starts a ByteStream server and a connection to it.
func serveBytes(t testing.TB, bs bytestream.ByteStreamServer, so []grpc.ServerOption, do []grpc.DialOption) bytestream.ByteStreamClient {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(so...)
	bytestream.RegisterByteStreamServer(s, bs)
	served := make(chan struct{})
	go func() {
		defer close(served)
		s.Serve(l)
	}()
	cc, err := grpc.NewClient("passthrough:///"+l.Addr().String(), do...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cc.Close()
		s.Stop()
		<-served
	})
	return bytestream.NewByteStreamClient(cc)
}

func TestBulkCrossesRealStreams(t *testing.T) {
	c := &copier{}
	client := serveBytes(t, c, PublicServerOptions(StreamWindow), DialOptions(nil))
	want := make([]byte, 3<<20+17)
	for i := range want {
		want[i] = byte(i * i >> 8)
	}
	w, err := client.Write(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i, src := 0, bytes.NewReader(want); ; i++ {
		head := &bytestream.WriteRequest{WriteOffset: int64(i) << 20}
		if i == 0 {
			head.ResourceName = "uploads/x"
		}
		b := Bulk{Head: head, Field: 10}
		if _, err := b.Fill(src, 1<<20); err == io.EOF {
			break
		}
		if err := w.SendMsg(&b); err != nil {
			t.Fatal(err)
		}
		b.Free()
	}
	if resp, err := w.CloseAndRecv(); err != nil || resp.CommittedSize != int64(len(want)) {
		t.Fatal(resp, err)
	}
	if !bytes.Equal(c.got.Bytes(), want) || c.name != "uploads/x" {
		t.Error("what was written differs")
	}

	r, err := client.Read(context.Background(), &bytestream.ReadRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var got []byte
	for { // as a client without Bulk
		resp, err := r.Recv()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, resp.Data...)
	}
	if !bytes.Equal(got, want) {
		t.Error("what was read differs")
	}
}
