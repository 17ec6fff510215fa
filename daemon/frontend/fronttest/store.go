// Package fronttest has small fakes of what the frontend stands on: a CAS with
// resumable uploads, an action cache and an executor, all in memory.
package fronttest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"

	"google.golang.org/grpc/mem"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/blob/replica"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	"github.com/remex-build/terraform-provider-remex/daemon/frontend"
)

// Store is a CAS and its uploads. The zero Store is empty and ready.
type Store struct {
	mu      sync.Mutex // guards everything below
	blobs   map[digest.Digest][]byte
	partial map[partialKey][]byte
	err     error
	calls   map[string]int
	largest int
}

type partialKey struct {
	replica.UploadKey
	d digest.Digest
}

// Add stores b under its SHA-256 digest.
func (s *Store) Add(b []byte) digest.Digest {
	d := digest.Of(digest.SHA256, b)
	s.set(d, b)
	return d
}

// Drop forgets a blob.
func (s *Store) Drop(d digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.blobs, d)
}

// Fail makes every later call fail with err; nil ends that.
func (s *Store) Fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

// Calls tells how often a method was called.
func (s *Store) Calls(method string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[method]
}

// Has reports whether the blob is there.
func (s *Store) Has(d digest.Digest) bool {
	_, err := s.get(d)
	return err == nil
}

// KeepPartial plants the beginning of an upload.
func (s *Store) KeepPartial(k replica.UploadKey, d digest.Digest, p []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.partial == nil {
		s.partial = map[partialKey][]byte{}
	}
	s.partial[partialKey{k, d}] = p
}

func (s *Store) called(method string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.calls == nil {
		s.calls = map[string]int{}
	}
	s.calls[method]++
	return s.err
}

func (s *Store) set(d digest.Digest, b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.blobs == nil {
		s.blobs = map[digest.Digest][]byte{}
	}
	s.blobs[d] = bytes.Clone(b)
}

func (s *Store) get(d digest.Digest) ([]byte, error) {
	if d.IsEmpty() {
		return nil, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.blobs[d]
	if !ok {
		return nil, blob.ErrNotFound
	}
	return b, nil
}

// Get implements blob.Getter.
func (s *Store) Get(_ context.Context, d digest.Digest, off int64) (io.ReadCloser, error) {
	if err := s.called("Get"); err != nil {
		return nil, err
	}
	b, err := s.get(d)
	if err != nil {
		return nil, err
	}
	return io.NopCloser(bytes.NewReader(b[off:])), nil
}

// GetBatch implements blob.Getter.
func (s *Store) GetBatch(_ context.Context, ds []digest.Digest) []blob.Result {
	failure := s.called("GetBatch")
	rs := make([]blob.Result, len(ds))
	for i, d := range ds {
		if rs[i].Err = failure; failure == nil {
			rs[i].Data, rs[i].Err = s.get(d)
		}
		if d.Size() > blob.SmallSize {
			rs[i].Err = fmt.Errorf("%s is too large for a batch", d)
		}
	}
	return rs
}

// Put implements blob.Putter.
func (s *Store) Put(_ context.Context, d digest.Digest, r io.Reader) error {
	if err := s.called("Put"); err != nil {
		return err
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	return s.verified(d, b)
}

// PutBatch implements blob.Putter.
func (s *Store) PutBatch(_ context.Context, bs []blob.Blob) []error {
	failure := s.called("PutBatch")
	errs := make([]error, len(bs))
	for i, b := range bs {
		if errs[i] = failure; failure == nil {
			errs[i] = s.verified(b.Digest, b.Data)
		}
		if len(b.Data) > blob.SmallSize {
			errs[i] = fmt.Errorf("%s is too large for a batch", b.Digest)
		}
	}
	return errs
}

func (s *Store) verified(d digest.Digest, b []byte) error {
	if digest.Of(d.Function(), b) != d {
		return blob.ErrMismatch
	}
	s.set(d, b)
	return nil
}

// Missing implements blob.Finder.
func (s *Store) Missing(_ context.Context, ds []digest.Digest) ([]digest.Digest, error) {
	if err := s.called("Missing"); err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.largest = max(s.largest, len(ds))
	s.mu.Unlock()
	var missing []digest.Digest
	for _, d := range ds {
		if _, err := s.get(d); err != nil {
			missing = append(missing, d)
		}
	}
	return missing, nil
}

// LargestMissing is how many digests the largest call of Missing had.
func (s *Store) LargestMissing() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.largest
}

// Upload implements frontend.Uploads.
func (s *Store) Upload(_ context.Context, k replica.UploadKey, d digest.Digest, off int64) (frontend.Upload, error) {
	if err := s.called("Upload"); err != nil {
		return nil, err
	}
	u := &upload{store: s, key: partialKey{k, d}}
	if u.finished = s.Has(d); u.finished {
		return u, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if off > 0 {
		u.data = bytes.Clone(s.partial[u.key])
	}
	if int64(len(u.data)) != off {
		return nil, fmt.Errorf("opened at %d, where %d is", off, len(u.data))
	}
	return u, nil
}

// UploadOffset implements frontend.Uploads.
func (s *Store) UploadOffset(_ context.Context, k replica.UploadKey, d digest.Digest) (int64, bool, error) {
	if err := s.called("UploadOffset"); err != nil {
		return 0, false, err
	}
	if s.Has(d) {
		return d.Size(), true, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return int64(len(s.partial[partialKey{k, d}])), false, nil
}

type upload struct {
	store    *Store
	key      partialKey
	data     []byte
	finished bool
}

func (u *upload) Append(data mem.BufferSlice) error {
	u.data = append(u.data, data.Materialize()...)
	return nil
}

func (u *upload) Complete() bool { return u.finished }

func (u *upload) Finish() error {
	u.finished = true
	return u.store.verified(u.key.d, u.data)
}

func (u *upload) Close() error {
	if !u.finished {
		u.store.KeepPartial(u.key.UploadKey, u.key.d, u.data)
	}
	return nil
}
