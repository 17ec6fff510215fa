package reapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"
	"google.golang.org/genproto/googleapis/bytestream"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

const (
	chunk = 1 << 20 // of a stream
	// perCall is how many digests one FindMissingBlobs names.
	perCall = 10_000
	// streams is how many large blobs are on their way at a time.
	streams = 4
	// batched is the largest blob that goes into a batch.
	batched = 1 << 20
)

// Source is a blob and where its bytes come from.
type Source struct {
	Digest digest.Digest
	path   string // of a file; "": data
	data   []byte
}

// FromBytes names b.
func (c *Client) FromBytes(b []byte) Source {
	return Source{Digest: digest.Of(c.fn, b), data: b}
}

// FromFile reads a file in order to name it.
func (c *Client) FromFile(path string) (Source, error) {
	f, err := os.Open(path)
	if err != nil {
		return Source{}, err
	}
	defer f.Close()
	h := digest.NewHasher(c.fn)
	if _, err := io.Copy(h, f); err != nil {
		return Source{}, err
	}
	return Source{Digest: h.Digest(), path: path}, nil
}

// open begins to read at an offset.
func (s Source) open(off int64) (io.ReadCloser, error) {
	if s.path == "" {
		return io.NopCloser(bytes.NewReader(s.data[off:])), nil
	}
	f, err := os.Open(s.path)
	if err != nil {
		return nil, err
	}
	if _, err := f.Seek(off, io.SeekStart); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (s Source) bytes() ([]byte, error) {
	if s.path == "" {
		return s.data, nil
	}
	r, err := s.open(0)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, s.Digest.Size()+1))
	if err == nil && int64(len(b)) != s.Digest.Size() {
		err = fmt.Errorf("%s has changed while it was read", s.path)
	}
	return b, err
}

// Missing returns those of ds that the server does not hold.
func (c *Client) Missing(ctx context.Context, ds []digest.Digest) ([]digest.Digest, error) {
	var missing []digest.Digest
	byFunction := map[digest.Function][]*repb.Digest{}
	for _, d := range ds {
		byFunction[d.Function()] = append(byFunction[d.Function()], toProto(d))
	}
	for fn, all := range byFunction {
		for part := range slices.Chunk(all, perCall) {
			var resp *repb.FindMissingBlobsResponse
			err := retry(ctx, func() (_ bool, err error) {
				resp, err = c.cas.FindMissingBlobs(ctx, &repb.FindMissingBlobsRequest{
					InstanceName: c.instance, BlobDigests: part, DigestFunction: repb.DigestFunction_Value(fn),
				})
				return false, err
			})
			if err != nil {
				return nil, Explain(c.target, err)
			}
			for _, p := range resp.MissingBlobDigests {
				d, err := digest.Parse(fn, p.Hash, p.SizeBytes)
				if err != nil {
					return nil, err
				}
				missing = append(missing, d)
			}
		}
	}
	return missing, nil
}

// Upload stores those of srcs that the server lacks, and says how many and how
// large they were.
func (c *Client) Upload(ctx context.Context, srcs []Source) (n int, size int64, err error) {
	byDigest := map[digest.Digest]Source{}
	var ds []digest.Digest
	for _, s := range srcs {
		if _, ok := byDigest[s.Digest]; !ok {
			byDigest[s.Digest] = s
			ds = append(ds, s.Digest)
		}
	}
	missing, err := c.Missing(ctx, ds)
	if err != nil {
		return 0, 0, err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(streams)
	var batch []Source
	var total int64
	for _, d := range missing {
		s, ok := byDigest[d]
		if !ok {
			continue // the server misses what was not asked for
		}
		n, size = n+1, size+d.Size()
		if d.Size() > min(batched, c.batch/2) {
			g.Go(func() error { return c.stream(ctx, s) })
			continue
		}
		// A digest and its frame weigh about 100 bytes.
		if total+d.Size()+100 > c.batch {
			full := batch
			g.Go(func() error { return c.putBatch(ctx, full) })
			batch, total = nil, 0
		}
		batch, total = append(batch, s), total+d.Size()+100
	}
	if len(batch) > 0 {
		g.Go(func() error { return c.putBatch(ctx, batch) })
	}
	return n, size, g.Wait()
}

func (c *Client) putBatch(ctx context.Context, srcs []Source) error {
	req := &repb.BatchUpdateBlobsRequest{InstanceName: c.instance, DigestFunction: repb.DigestFunction_Value(c.fn)}
	for _, s := range srcs {
		b, err := s.bytes()
		if err != nil {
			return err
		}
		req.Requests = append(req.Requests, &repb.BatchUpdateBlobsRequest_Request{Digest: toProto(s.Digest), Data: b})
	}
	err := retry(ctx, func() (bool, error) {
		resp, err := c.cas.BatchUpdateBlobs(ctx, req)
		if err != nil {
			return false, err
		}
		for _, r := range resp.Responses {
			if codes.Code(r.GetStatus().GetCode()) != codes.OK {
				return false, status.ErrorProto(r.Status)
			}
		}
		return false, nil
	})
	if err != nil {
		return fmt.Errorf("upload %d blobs: %w", len(srcs), Explain(c.target, err))
	}
	return nil
}

// stream uploads a large blob, going on where a broken stream got to.
func (c *Client) stream(ctx context.Context, s Source) error {
	name := fmt.Sprintf("%suploads/%s/blobs/%s", c.prefix(), uuid.NewString(), s.Digest)
	var off int64
	err := retry(ctx, func() (bool, error) {
		began := off
		err := c.write(ctx, name, s, off)
		if err == nil || !transient(err) {
			return false, err
		}
		if st, qerr := c.bytes.QueryWriteStatus(ctx, &bytestream.QueryWriteStatusRequest{ResourceName: name}); qerr == nil {
			off = min(max(st.CommittedSize, 0), s.Digest.Size())
		} else {
			off = 0
		}
		return off > began, err
	})
	if err != nil {
		return fmt.Errorf("upload %s: %w", s.Digest, Explain(c.target, err))
	}
	return nil
}

func (c *Client) write(ctx context.Context, name string, s Source, off int64) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, err := s.open(off)
	if err != nil {
		return err
	}
	defer r.Close()
	w, err := c.bytes.Write(ctx)
	if err != nil {
		return err
	}
	buf := make([]byte, chunk)
	for finish := false; !finish; {
		n, err := io.ReadFull(r, buf)
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return err
		}
		finish = err != nil || off+int64(n) >= s.Digest.Size()
		req := &bytestream.WriteRequest{ResourceName: name, WriteOffset: off, Data: buf[:n], FinishWrite: finish}
		if err := w.Send(req); errors.Is(err, io.EOF) {
			break // the server has said all that it wants to say
		} else if err != nil {
			return err
		}
		off += int64(n)
	}
	resp, err := w.CloseAndRecv()
	if err != nil {
		return err
	}
	if resp.CommittedSize != s.Digest.Size() {
		return fmt.Errorf("the server took %d of %d bytes", resp.CommittedSize, s.Digest.Size())
	}
	return nil
}

// prefix stands before the resource names of the instance.
func (c *Client) prefix() string {
	if c.instance == "" {
		return ""
	}
	return c.instance + "/"
}

// Read writes a blob to w, and fails when what came is not it: w holds rubbish
// then.
func (c *Client) Read(ctx context.Context, d digest.Digest, w io.Writer) error {
	if !d.Function().Computable() {
		return fmt.Errorf("%s: this client cannot verify %s", d, d.Function())
	}
	h := digest.NewHasher(d.Function())
	if !d.IsEmpty() {
		err := retry(ctx, func() (bool, error) {
			began := h.Size()
			err := c.readFrom(ctx, d, io.MultiWriter(w, h), h.Size())
			return h.Size() > began, err
		})
		if status.Code(err) == codes.NotFound {
			return fmt.Errorf("%s holds no blob %s", c.target, d)
		}
		if err != nil {
			return fmt.Errorf("download %s: %w", d, Explain(c.target, err))
		}
	}
	if got := h.Digest(); got != d {
		return fmt.Errorf("download %s: %s sent %s instead", d, c.target, got)
	}
	return nil
}

func (c *Client) readFrom(ctx context.Context, d digest.Digest, w io.Writer, off int64) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, err := c.bytes.Read(ctx, &bytestream.ReadRequest{ResourceName: c.prefix() + "blobs/" + d.String(), ReadOffset: off})
	if err != nil {
		return err
	}
	for {
		resp, err := r.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := w.Write(resp.Data); err != nil {
			return err
		}
	}
}
