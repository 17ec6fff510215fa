package dev

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"

	"github.com/remex-build/terraform-provider-remex/daemon/config"
)

// Where the nodes are in their /24: schedulers from .1, workers from .11, and
// the last address is the claim.
const (
	maxSchedulers = 9
	maxWorkers    = 200

	roleScheduler = "scheduler"
	roleWorker    = "worker"
)

// node is one node as the cluster's description has it.
type node struct {
	Name    string `json:"name"`
	Role    string `json:"role"`
	PID     int    `json:"pid"` // 0 while it does not run
	Public  string `json:"public,omitempty"`
	Cluster string `json:"cluster"`
	Gossip  string `json:"gossip"`
	Ops     string `json:"ops"`
	Dir     string `json:"dir,omitempty"`
	Log     string `json:"log"`
}

// network is a 127.a.b.0/24 that is this cluster's.
type network struct {
	a, b  int
	claim net.Listener
}

// claimNetwork finds a network that nobody uses. It stays claimed by a
// listener on its last address: two clusters that start at once get two.
func claimNetwork(ctx context.Context) (*network, error) {
	var last error
	for range 100 {
		n := &network{a: 64 + rand.IntN(128), b: rand.IntN(256)}
		if last = n.take(ctx); last == nil {
			return n, nil
		}
	}
	return nil, fmt.Errorf("find a free loopback network: %w", last)
}

func (n *network) take(ctx context.Context) error {
	var lc net.ListenConfig
	claim, err := lc.Listen(ctx, "tcp", n.host(254, config.ClusterPort))
	if err != nil {
		return err
	}
	for host := 1; host <= 10+maxWorkers; host++ {
		// What listens on all addresses is in the way of one port, and
		// then of it on every address: the first nodes tell.
		for _, port := range []int{config.PublicPort, config.ClusterPort, config.GossipPort, config.OpsPort} {
			if host > 12 && port != config.ClusterPort {
				continue
			}
			l, err := lc.Listen(ctx, "tcp", n.host(host, port))
			if err != nil {
				return errors.Join(err, claim.Close())
			}
			if err := l.Close(); err != nil {
				return errors.Join(err, claim.Close())
			}
		}
	}
	n.claim = claim
	return nil
}

func (n *network) release() { _ = n.claim.Close() }

func (n *network) host(host, port int) string {
	return net.JoinHostPort(fmt.Sprintf("127.%d.%d.%d", n.a, n.b, host), strconv.Itoa(port))
}

// addr is a port of the i-th node of a role.
func (n *network) addr(role string, i, port int) string {
	if role == roleScheduler {
		return n.host(1+i, port)
	}
	return n.host(11+i, port)
}

func (n *network) node(role string, i int) node {
	at := func(port int) string { return n.addr(role, i, port) }
	nd := node{
		Name: fmt.Sprintf("%s-%d", role, i+1), Role: role,
		Cluster: at(config.ClusterPort), Gossip: at(config.GossipPort), Ops: at(config.OpsPort),
	}
	if role == roleScheduler {
		nd.Public = at(config.PublicPort)
	}
	return nd
}
