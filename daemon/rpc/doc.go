// Package rpc owns how nodes and clients talk gRPC: the options that keep every
// client and balancer connected, the mapping between errors and statuses, a
// codec that passes bulk data through without copying it, connections to other
// nodes (Peers), and the stream over which small calls between two nodes travel
// together (Peers.Call on one side, Mux on the other).
//
// A call is sent as soon as the stream can take it: whatever gathered while the
// frame before was being written goes out as one frame, and no timer delays
// anything. Calls in flight, bytes queued and handlers running are bounded; at
// the bound callers wait and streams are not read.
//
// The package knows no service but proto.Calls, retries nothing, and does not
// decide whom to call: it only tells which addresses answer (Peers.Reachable).
package rpc
