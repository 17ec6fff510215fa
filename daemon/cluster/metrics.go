package cluster

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	members *prometheus.GaugeVec
	changes prometheus.Counter
}

// newMetrics makes the metrics of the membership; reg may be nil.
func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		members: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "remex_cluster_members", Help: "Nodes that this node knows, itself included, by role and state.",
		}, []string{"role", "state"}),
		changes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "remex_cluster_view_changes_total", Help: "Changes of what this node knows of others.",
		}),
	}
	if reg != nil {
		reg.MustRegister(m.members, m.changes)
	}
	return m
}

func (m *metrics) set(v *View) {
	m.changes.Inc()
	m.members.Reset()
	for _, n := range v.Members {
		m.members.WithLabelValues(n.Role.String(), n.State.String()).Inc()
	}
}
