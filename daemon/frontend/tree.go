package frontend

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

const (
	// maxDirectories bounds the memory of one walk: some 30 MiB.
	maxDirectories = 200_000
	// walkBatch and walkBytes bound what a walk reads at a time.
	walkBatch = 256
	walkBytes = 1 << 20
)

// walk visits the directories under root, each once and breadth first, in an
// order that depends on their contents alone. i counts them; a directory that
// is not there counts, and visit gets nil for it.
func (f *Frontend) walk(ctx context.Context, root digest.Digest, visit func(i int, d digest.Digest, dir *repb.Directory) error) error {
	dec := &decoder{fn: root.Function()}
	order := []digest.Digest{root}
	seen := map[digest.Digest]struct{}{root: {}}
	for next := 0; next < len(order); {
		batch := walkNext(order[next:])
		for _, d := range batch {
			if d.Size() > maxBatch { // which would all be read into memory
				return invalid("root_digest", "%s has %d bytes, more than a Directory may have", d, d.Size())
			}
		}
		for i, r := range f.readAll(ctx, batch) {
			d := batch[i]
			switch {
			case blob.IsNotFound(r.Err):
				if err := visit(next+i, d, nil); err != nil {
					return err
				}
				continue
			case r.Err != nil:
				return fmt.Errorf("read directory %s: %w", d, r.Err)
			}
			dir := &repb.Directory{}
			if err := proto.Unmarshal(r.Data, dir); err != nil {
				return invalid("root_digest", "%s, which it leads to, is no Directory", d)
			}
			for _, sub := range dir.Directories {
				sd, err := dec.digest(sub.GetDigest(), "root_digest: directory "+quote(sub.GetName()))
				if err != nil {
					return err
				}
				if _, again := seen[sd]; !again {
					seen[sd] = struct{}{}
					order = append(order, sd)
				}
			}
			if len(order) > maxDirectories {
				return status.Errorf(codes.ResourceExhausted, "the tree under %s has more than %d directories", root, maxDirectories)
			}
			if err := visit(next+i, d, dir); err != nil {
				return err
			}
		}
		next += len(batch)
	}
	return nil
}

// walkNext is how much of the queue to read at a time.
func walkNext(queue []digest.Digest) []digest.Digest {
	var total int64
	for i, d := range queue[:min(len(queue), walkBatch)] {
		if total += min(d.Size(), maxBatch); i > 0 && total > walkBytes {
			return queue[:i]
		}
	}
	return queue[:min(len(queue), walkBatch)]
}

func (s cas) GetTree(req *repb.GetTreeRequest, stream grpc.ServerStreamingServer[repb.GetTreeResponse]) error {
	ctx := stream.Context()
	if err := checkInstance(req.InstanceName); err != nil {
		return err
	}
	dec, err := newDecoder(req.DigestFunction)
	if err != nil {
		return err
	}
	root, err := dec.digest(req.RootDigest, "root_digest")
	if err != nil {
		return err
	}
	if req.PageSize < 0 {
		return invalid("page_size", "%d is negative", req.PageSize)
	}
	skip, err := parseToken(req.PageToken, root)
	if err != nil {
		return err
	}
	// Held while the client takes its time: one page and one batch.
	room := s.answer(ctx)
	if err := room.take(maxMessage); err != nil {
		return err
	}
	defer room.drop()

	p := pager{root: root, limit: int(req.PageSize), send: stream.Send}
	err = s.walk(ctx, root, func(i int, d digest.Digest, dir *repb.Directory) error {
		switch {
		case dir == nil && i == 0:
			return fmt.Errorf("tree %s: %w", root, blob.ErrNotFound)
		case dir == nil || i < skip:
			return nil // what is missing is left out, as the API says
		}
		return p.add(i, d, dir)
	})
	if err != nil {
		return err
	}
	p.send = func(page *repb.GetTreeResponse) error {
		return stream.SendMsg(room.around(page))
	}
	return p.flush("")
}

// pager gathers directories into pages.
type pager struct {
	root  digest.Digest
	limit int // directories a page, 0 for as many as fit
	send  func(*repb.GetTreeResponse) error
	page  []*repb.Directory
	size  int
}

func (p *pager) add(i int, d digest.Digest, dir *repb.Directory) error {
	n := entrySize(dir)
	if n > maxBatch {
		return status.Errorf(codes.ResourceExhausted, "directory %s has %d bytes, more than a message can hold", d, n)
	}
	if len(p.page) > 0 && (p.size+n > maxBatch || len(p.page) == p.limit) {
		if err := p.flush(token(i, p.root)); err != nil {
			return err
		}
	}
	p.page = append(p.page, dir)
	p.size += n
	return nil
}

func (p *pager) flush(next string) error {
	err := p.send(&repb.GetTreeResponse{Directories: p.page, NextPageToken: next})
	p.page, p.size = nil, 0
	return err
}

// token names the i-th directory of the walk from root. It holds on every node,
// and as long as the tree is there.
func token(i int, root digest.Digest) string {
	return strconv.Itoa(i) + "-" + root.Hash()[:16]
}

func parseToken(t string, root digest.Digest) (int, error) {
	if t == "" {
		return 0, nil
	}
	n, hash, _ := strings.Cut(t, "-")
	i, err := strconv.ParseUint(n, 10, 31)
	if err != nil || hash != root.Hash()[:16] {
		return 0, invalid("page_token", "%s is not one of this tree's", quote(t))
	}
	return int(i), nil
}
