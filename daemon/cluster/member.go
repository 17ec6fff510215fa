// Package cluster owns membership: which nodes there are, what they are and
// where they are reached. It promises every node the same eventual view, and
// nothing about who is alive at this instant: routing follows the connections
// of package rpc, placement of data follows package placement.
package cluster

import (
	"encoding/hex"
	"fmt"
)

// Role is what a node does.
type Role uint8

// The roles.
const (
	Scheduler Role = 1
	Worker    Role = 2
)

// String is the role's name in configuration, logs and metrics.
func (r Role) String() string {
	switch r {
	case Scheduler:
		return "scheduler"
	case Worker:
		return "worker"
	}
	return fmt.Sprintf("role(%d)", uint8(r))
}

// State is how far a node has come in its life.
type State uint8

// The states. Left is never gossiped: it is what observers conclude.
const (
	Starting State = 1
	Ready    State = 2
	Draining State = 3
)

// String is the state's name in logs and tables.
func (s State) String() string {
	switch s {
	case Starting:
		return "starting"
	case Ready:
		return "ready"
	case Draining:
		return "draining"
	}
	return fmt.Sprintf("state(%d)", uint8(s))
}

// DiskID names a worker's store for as long as its contents live. Placement is
// keyed by it, never by a node's name or address. The zero DiskID is no disk.
type DiskID [16]byte

// String is the id in hexadecimal.
func (id DiskID) String() string { return hex.EncodeToString(id[:]) }

// Member is what a node tells of itself. It travels in gossip, packed into at
// most 512 bytes, and is a hint: each mTLS dial checks the role again.
type Member struct {
	ID   string // unique per start of a process: the node's name and its boot nonce
	Name string // the node's name, kept over restarts
	Boot int64  // when the process started, in Unix nanoseconds
	Role Role

	Pool string // a worker's pool
	Zone string

	Addr string // host:port of the cluster port (8981)
	Ops  string // host:port of the ops port (8983)

	Disk   DiskID // of a worker
	Weight uint32 // of the disk: its capacity in units of 64 MiB, at least 1

	State   State
	Version uint32 // the newest placement version that the node speaks
}

// View is an immutable picture of the membership, sorted by Member.ID.
type View struct {
	Members []Member
}

// Role returns the members that have the role r, in the order of the view.
func (v *View) Role(r Role) []Member {
	var ms []Member
	for _, m := range v.Members {
		if m.Role == r {
			ms = append(ms, m)
		}
	}
	return ms
}
