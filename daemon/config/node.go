package config

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"time"
)

// The standard ports, which a listen address without a port gets.
const (
	PublicPort  = 8980
	ClusterPort = 8981
	GossipPort  = 8982
	OpsPort     = 8983
)

// Node is what both roles share.
type Node struct {
	// Name is kept over restarts. Default: the host's name and the role, as a
	// host may have one node of each.
	Name string

	ListenCluster string
	ListenGossip  string
	ListenOps     string

	// Discovery says how the first other nodes are found: "static" means Seeds.
	Discovery string
	// Seeds are gossip addresses of other nodes, any of which may be down.
	Seeds []string
	// ClusterName keeps clusters that reach each other from merging.
	ClusterName string
	// Zone is where the node stands: copies of a blob go to different zones.
	Zone string

	// Replicas is how many disks keep each blob. All nodes must agree on it.
	Replicas int
	// WriteAcks is how many of them must have a blob before its writer hears
	// of success; 0 means all.
	WriteAcks int

	// StreamBudget bounds the bytes of blobs in flight through this node.
	StreamBudget ByteSize
	// DeadAfter is how long a disk may be out of sight before others take
	// over its share of the blobs.
	DeadAfter time.Duration

	LogLevel  string // debug, info, warn or error
	LogFormat string // text or json
}

func defaultNode(role string) Node {
	host, err := os.Hostname()
	if err != nil {
		host = "localhost"
	}
	return Node{
		Name:          host + "-" + role,
		ListenCluster: loopback(ClusterPort),
		ListenGossip:  loopback(GossipPort),
		ListenOps:     loopback(OpsPort),
		Discovery:     "static",
		ClusterName:   "remex",
		Replicas:      2,
		StreamBudget:  512 * MiB,
		DeadAfter:     time.Minute,
		LogLevel:      "info",
		LogFormat:     "text",
	}
}

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

func (c *Node) settings() []setting {
	return []setting{
		text("name", &c.Name, "the node's name, kept over restarts and unique in the cluster"),
		text("listen-cluster", &c.ListenCluster, "host:port on which other nodes reach this one"),
		text("listen-gossip", &c.ListenGossip, "host:port for membership (TCP and UDP)"),
		text("listen-ops", &c.ListenOps, "host:port for /healthz, /readyz, /metrics and profiles"),
		text("discovery", &c.Discovery, "how other nodes are found; static means by --seeds"),
		list("seeds", &c.Seeds, "gossip addresses of some other nodes; the rest is learned from them"),
		text("cluster-name", &c.ClusterName, "nodes talk to nodes of the same cluster only"),
		text("zone", &c.Zone, "where the node stands; the copies of a blob go to different zones"),
		number("replicas", &c.Replicas, "how many disks keep each blob; the same on every node"),
		number("write-acks", &c.WriteAcks, "how many of them must have a blob before a write succeeds; 0 means all. Lower it to trade safety of fresh blobs for speed"),
		size("stream-budget", &c.StreamBudget, "bytes of blobs in flight through this node; raise it for many large transfers at once"),
		duration("dead-after", &c.DeadAfter, "how long a disk may be out of sight before others take over its share; raise it where restarts take longer"),
		text("log-level", &c.LogLevel, "debug, info, warn or error"),
		text("log-format", &c.LogFormat, "text or json"),
	}
}

var nodeName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

func (c *Node) check() problems {
	var ps problems
	ps.add(!nodeName.MatchString(c.Name), fmt.Sprintf("%q is no name for a node: use up to 63 letters, digits, dots, dashes", c.Name), "name")
	ps.add(c.Discovery != "static", fmt.Sprintf("%q is not known; this version knows only static", c.Discovery), "discovery")
	ps.add(!nodeName.MatchString(c.ClusterName), fmt.Sprintf("%q is no name for a cluster: use up to 63 letters, digits, dots, dashes", c.ClusterName), "cluster-name")
	ps.add(c.Zone != "" && !nodeName.MatchString(c.Zone), fmt.Sprintf("%q is no name for a zone: use up to 63 letters, digits, dots, dashes", c.Zone), "zone")
	for _, seed := range c.Seeds {
		ps.address("seeds", seed)
	}
	ps.add(c.Replicas < 1 || c.Replicas > 9, fmt.Sprintf("%d is not between 1 and 9", c.Replicas), "replicas")
	ps.add(c.WriteAcks < 0, fmt.Sprintf("%d is negative", c.WriteAcks), "write-acks")
	ps.add(c.WriteAcks > c.Replicas, fmt.Sprintf("%d acknowledgements cannot come from %d replicas", c.WriteAcks, c.Replicas), "write-acks", "replicas")
	ps.add(c.StreamBudget < 256*MiB, fmt.Sprintf("%s is less than 256MiB, which a few streams need", c.StreamBudget), "stream-budget")
	ps.add(c.DeadAfter < time.Second, fmt.Sprintf("%s is less than 1s", c.DeadAfter), "dead-after")
	ps.add(!slices.Contains([]string{"debug", "info", "warn", "error"}, c.LogLevel), fmt.Sprintf("%q is none of debug, info, warn, error", c.LogLevel), "log-level")
	ps.add(!slices.Contains([]string{"text", "json"}, c.LogFormat), fmt.Sprintf("%q is neither text nor json", c.LogFormat), "log-format")
	return ps
}

// Acks is the number of acknowledgements that WriteAcks asks for.
func (c *Node) Acks() int {
	if c.WriteAcks == 0 {
		return c.Replicas
	}
	return c.WriteAcks
}

// address checks a host:port. Everything that Remex listens on is plaintext in
// this version, and therefore for this machine alone.
func (ps *problems) address(name, addr string) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		ps.add(true, fmt.Sprintf("%q is no host:port", addr), name)
		return
	}
	_, err = strconv.ParseUint(port, 10, 16)
	ps.add(err != nil, fmt.Sprintf("%q has no valid port", addr), name)
	if host == "localhost" {
		return
	}
	ip, err := netip.ParseAddr(host)
	ps.add(err != nil || !ip.IsLoopback(),
		fmt.Sprintf("%s is not a loopback address: TLS is not available yet, and without it Remex talks only within one machine (127.0.0.0/8, ::1, localhost)", addr), name)
}

// listeners checks the listen addresses by the names of their settings.
func (ps *problems) listeners(names, addrs []string) {
	for i, a := range addrs {
		ps.address(names[i], a)
		_, port, _ := net.SplitHostPort(a)
		if j := slices.Index(addrs, a); j < i && port != "0" {
			ps.add(true, fmt.Sprintf("both are %s", a), names[i], names[j])
		}
	}
}
