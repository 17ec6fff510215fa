package cluster

import (
	"context"
	"fmt"
	"log"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/remex-build/terraform-provider-remex/daemon/rpc"
)

// Options say who a node is and whom it joins. Durations that are zero have the
// defaults named beside them.
type Options struct {
	Self     Member
	BindAddr string   // IP:port for gossip, TCP and UDP; port 0 picks one
	Seeds    []string // host:port of other nodes' gossip; its own is ignored
	Label    string   // the cluster's name: nodes with another one are not heard
	// SecretKey encrypts gossip: 16, 24 or 32 bytes. Without one, BindAddr
	// must be a loopback address.
	SecretKey  []byte
	Log        *slog.Logger
	Registerer prometheus.Registerer // may be nil

	ProbeInterval  time.Duration // 500 ms
	ProbeTimeout   time.Duration // 200 ms
	GossipInterval time.Duration // 200 ms
	RejoinInterval time.Duration // 15 s: how often missing seeds are joined
}

func (o *Options) defaults() {
	for d, def := range map[*time.Duration]time.Duration{
		&o.ProbeInterval:  500 * time.Millisecond,
		&o.ProbeTimeout:   200 * time.Millisecond,
		&o.GossipInterval: 200 * time.Millisecond,
		&o.RejoinInterval: 15 * time.Second,
	} {
		if *d == 0 {
			*d = def
		}
	}
}

// leaveTimeout bounds how long a node that ends tells the others so.
const leaveTimeout = 1500 * time.Millisecond

// Members is a node's part in the membership. Its methods are safe for
// concurrent use.
type Members struct {
	o       Options
	log     *slog.Logger
	metrics *metrics
	list    *memberlist.Memberlist

	telling sync.Mutex // serializes SetState; taken before mu

	mu      sync.Mutex // guards everything below; never held while calling list
	self    Member
	meta    []byte // self, packed; replaced, never changed
	known   map[string]Member
	view    *View
	changed chan struct{}
	left    bool
}

// Start begins to listen and to gossip. It does not wait for other nodes: Run
// looks for them. Run must be called, and ends what Start began.
func Start(o Options) (*Members, error) {
	o.defaults()
	host, port, err := bindAddr(o.BindAddr, o.SecretKey)
	if err != nil {
		return nil, err
	}
	if o.Self.ID == "" || o.Self.Name == "" {
		return nil, fmt.Errorf("a member has an id and a name")
	}
	meta, err := o.Self.pack()
	if err != nil {
		return nil, err
	}
	m := &Members{
		o:       o,
		log:     o.Log,
		metrics: newMetrics(o.Registerer),
		self:    o.Self,
		meta:    meta,
		known:   make(map[string]Member),
		view:    &View{},
		changed: make(chan struct{}),
	}
	m.list, err = memberlist.Create(m.config(host, port))
	if err != nil {
		return nil, fmt.Errorf("start gossip on %s: %w", o.BindAddr, err)
	}
	return m, nil
}

// bindAddr takes an address apart. A host name would make memberlist listen on
// all addresses.
func bindAddr(addr string, key []byte) (string, int, error) {
	host, portText, err := net.SplitHostPort(addr)
	if err != nil {
		return "", 0, fmt.Errorf("gossip address: %w", err)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return "", 0, fmt.Errorf("gossip address %q: port is not a number below 65536", addr)
	}
	if net.ParseIP(host) == nil {
		return "", 0, fmt.Errorf("gossip address %q: host is not an IP address", addr)
	}
	if len(key) == 0 {
		if err := rpc.LoopbackOnly(addr); err != nil {
			return "", 0, fmt.Errorf("gossip without a key: %w", err)
		}
	}
	return host, int(port), nil
}

func (m *Members) config(host string, port int) *memberlist.Config {
	c := memberlist.DefaultLANConfig()
	c.Name = m.o.Self.ID
	c.BindAddr, c.BindPort = host, port
	c.AdvertisePort = port
	c.Label = m.o.Label
	c.SecretKey = m.o.SecretKey
	c.ProbeInterval = m.o.ProbeInterval
	c.ProbeTimeout = m.o.ProbeTimeout
	c.GossipInterval = m.o.GossipInterval
	c.PushPullInterval = m.o.RejoinInterval
	c.TCPTimeout = 2 * time.Second
	c.EnableCompression = false // of messages this small it costs more than it saves
	c.Delegate = (*delegate)(m)
	c.Events = (*delegate)(m)
	c.LogOutput = nil
	c.Logger = log.New(newBridge(m.log), "", 0)
	return c
}

// View is the current membership. It is never changed.
func (m *Members) View() *View {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.view
}

// Changed returns a channel that is closed when a later View differs from that
// of now: take the channel first, then the view.
func (m *Members) Changed() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changed
}

// Self is what this node tells of itself.
func (m *Members) Self() Member {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.self
}

// GossipAddr is where this node gossips, host:port.
func (m *Members) GossipAddr() string { return m.list.LocalNode().Address() }

// SetState tells the others how far this node has come, and waits for a moment
// until they begin to hear it.
func (m *Members) SetState(s State) {
	m.telling.Lock()
	defer m.telling.Unlock()
	m.mu.Lock()
	if m.left || m.self.State == s {
		m.mu.Unlock()
		return
	}
	self := m.self
	self.State = s
	meta, err := self.pack()
	if err != nil { // a state takes one byte, whichever it is
		m.mu.Unlock()
		panic(err)
	}
	m.self, m.meta = self, meta
	m.mu.Unlock()
	if err := m.list.UpdateNode(500 * time.Millisecond); err != nil {
		m.log.Debug("telling the state", "state", s.String(), "err", err)
	}
}

// update changes what is known, and the view if that makes a difference.
func (m *Members) update(change func(known map[string]Member)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change(m.known)
	v := newView(m.known)
	if equal(v, m.view) {
		return
	}
	m.view = v
	m.metrics.set(v)
	close(m.changed)
	m.changed = make(chan struct{})
}

// Run keeps looking for the seeds until ctx ends. Then it tells the others that
// this node leaves, and ends all that Start began.
func (m *Members) Run(ctx context.Context) error {
	var joining sync.WaitGroup
	joining.Go(func() { m.join(ctx) })
	<-ctx.Done()

	m.telling.Lock()
	m.mu.Lock()
	m.left = true
	m.mu.Unlock()
	m.telling.Unlock()
	if err := m.list.Leave(leaveTimeout); err != nil {
		m.log.Debug("leaving the cluster", "err", err)
	}
	err := m.list.Shutdown()
	joining.Wait()
	if err != nil {
		return fmt.Errorf("end gossip: %w", err)
	}
	return nil
}
