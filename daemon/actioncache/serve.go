package actioncache

import (
	"context"
	"errors"

	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
	"github.com/remex-build/terraform-provider-remex/daemon/rpc"
)

const (
	minPage = 64 << 10
	maxPage = 2 << 20 // and one entry
)

// Register makes mux answer for this node's part: METHOD_AC_GET and
// METHOD_AC_LIST for its memory or else its journal, METHOD_AC_PUT for the
// memory, METHOD_AC_APPEND for the journal.
func (c *Client) Register(mux *rpc.Mux) {
	switch {
	case c.o.Memory != nil:
		rpc.Handle(mux, pb.Method_METHOD_AC_GET, c.serveGet)
		rpc.Handle(mux, pb.Method_METHOD_AC_PUT, c.servePut)
		rpc.Handle(mux, pb.Method_METHOD_AC_LIST, c.serveList)
	case c.o.Journal != nil:
		rpc.Handle(mux, pb.Method_METHOD_AC_GET, c.serveJournalGet)
		rpc.Handle(mux, pb.Method_METHOD_AC_APPEND, c.serveAppend)
		rpc.Handle(mux, pb.Method_METHOD_AC_LIST, c.serveJournalList)
	}
}

func (c *Client) serveGet(_ context.Context, _ string, req *pb.AcGetRequest) (*pb.AcGetResponse, error) {
	k, err := keyFromProto(req.GetKey())
	if err != nil {
		return nil, err
	}
	r := c.ring()
	// Whoever asks may have another view: only an owner is sure.
	sure := c.sure(r) && r.isSelf(r.owners(k, c.o.Replicas))
	e, found, known := c.o.Memory.Lookup(k)
	resp := &pb.AcGetResponse{Settled: sure && known}
	if found {
		resp.Entry = toProto(&e)
	}
	return resp, nil
}

// accept takes in what others have written. Entries that it refuses don't keep
// it from the rest.
func (c *Client) accept(ps []*pb.AcEntry) (es []Entry, err error) {
	for _, p := range ps {
		e, bad := fromProto(p)
		if bad == nil {
			bad = c.clock.Observe(e.Stamp)
		}
		if bad != nil {
			c.metrics.refused.Inc()
			err = errors.Join(err, bad)
			continue
		}
		es = append(es, e)
	}
	return es, err
}

func (c *Client) servePut(_ context.Context, _ string, req *pb.AcPutRequest) (*pb.AcPutResponse, error) {
	es, err := c.accept(req.GetEntries())
	for _, e := range es {
		c.o.Memory.Put(e)
	}
	if err != nil {
		return nil, err
	}
	return &pb.AcPutResponse{}, nil
}

func (c *Client) serveList(_ context.Context, _ string, req *pb.AcListRequest) (*pb.AcListResponse, error) {
	es, next := c.o.Memory.List(req.GetAfter(), req.GetSince(), pageSize(req))
	resp := &pb.AcListResponse{Next: next}
	for i := range es {
		if es[i].Stamp < req.GetResultsSince() {
			es[i].Result = nil
		}
		resp.Entries = append(resp.Entries, toProto(&es[i]))
	}
	return resp, nil
}

func pageSize(req *pb.AcListRequest) int {
	return int(min(max(req.GetMaxBytes(), minPage), maxPage))
}

func (c *Client) serveJournalGet(_ context.Context, _ string, req *pb.AcGetRequest) (*pb.AcGetResponse, error) {
	k, err := keyFromProto(req.GetKey())
	if err != nil {
		return nil, err
	}
	loading := c.o.Journal.Loading() // before: what is read meanwhile is found
	e, found, err := c.o.Journal.Get(k)
	if err != nil {
		return nil, err
	}
	resp := &pb.AcGetResponse{Settled: !loading}
	if found {
		resp.Entry = toProto(&e)
	}
	return resp, nil
}

func (c *Client) serveAppend(_ context.Context, _ string, req *pb.AcPutRequest) (*pb.AcPutResponse, error) {
	es, err := c.accept(req.GetEntries())
	if bad := c.o.Journal.Append(es); bad != nil {
		return nil, bad
	}
	if err != nil {
		return nil, err
	}
	return &pb.AcPutResponse{}, nil
}

func (c *Client) serveJournalList(_ context.Context, _ string, req *pb.AcListRequest) (*pb.AcListResponse, error) {
	if c.o.Journal.Loading() {
		return &pb.AcListResponse{Loading: true}, nil
	}
	es, next, err := c.o.Journal.List(req.GetAfter(), req.GetSince(), req.GetResultsSince(), pageSize(req))
	if err != nil {
		return nil, err
	}
	resp := &pb.AcListResponse{Next: next}
	for i := range es {
		resp.Entries = append(resp.Entries, toProto(&es[i]))
	}
	return resp, nil
}
