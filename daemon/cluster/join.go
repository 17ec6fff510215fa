package cluster

import (
	"context"
	"math/rand/v2"
	"net"
	"slices"
	"time"
)

const (
	firstRetry = 200 * time.Millisecond
	lastRetry  = time.Second
	// aloneAfter is when a node says that it finds nobody, and aloneAgain when
	// it says so again.
	aloneAfter = 5 * time.Second
	aloneAgain = time.Minute
)

// join looks for the seeds that are not among the members: often while this
// node is alone, and from time to time ever after. memberlist gives up on nodes
// that stay dead, so that the halves of a cluster that was cut apart find each
// other by this alone.
func (m *Members) join(ctx context.Context) {
	retry := firstRetry
	warnAt := time.Now().Add(aloneAfter)
	for {
		err := m.joinMissing(ctx)
		pause := jitter(m.o.RejoinInterval)
		if m.alone() {
			if now := time.Now(); err != nil && now.After(warnAt) {
				warnAt = now.Add(aloneAgain)
				m.log.Warn("no other node is found: is the seed another node's gossip address, and its cluster's name ours?",
					"seeds", m.o.Seeds, "label", m.o.Label, "err", err)
			}
			pause = min(jitter(retry), pause)
			retry = min(2*retry, lastRetry)
		} else {
			retry = firstRetry
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// alone reports whether this node has seen no other and may expect one.
func (m *Members) alone() bool {
	return m.list.NumMembers() <= 1 && len(m.others()) > 0 && len(m.others()) == len(m.o.Seeds)
}

// others are the seeds that are not this node.
func (m *Members) others() []string {
	self := m.GossipAddr()
	return slices.DeleteFunc(slices.Clone(m.o.Seeds), func(s string) bool { return canonical(s) == self })
}

// joinMissing joins the seeds that are no members. A seed that is given by name
// is always joined: what the name stands for may have changed. It returns the
// last error.
func (m *Members) joinMissing(ctx context.Context) (last error) {
	seeds := m.others()
	rand.Shuffle(len(seeds), func(i, j int) { seeds[i], seeds[j] = seeds[j], seeds[i] })
	for _, seed := range seeds {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if m.has(canonical(seed)) { // perhaps through the seed before
			continue
		}
		if _, err := m.list.Join([]string{seed}); err != nil {
			m.log.Debug("joining a seed", "peer", seed, "err", err)
			last = err
		}
	}
	return last
}

func (m *Members) has(addr string) bool {
	for _, n := range m.list.Members() {
		if n.Address() == addr {
			return true
		}
	}
	return false
}

// canonical spells an address as memberlist does.
func canonical(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	ip := net.ParseIP(host)
	if ip == nil {
		return addr
	}
	return net.JoinHostPort(ip.String(), port)
}

// jitter spreads d over 75 to 125 percent.
func jitter(d time.Duration) time.Duration {
	return d*3/4 + rand.N(d/2+1)
}
