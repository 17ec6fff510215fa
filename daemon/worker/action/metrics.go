package action

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	actions *prometheus.CounterVec
	seconds *prometheus.HistogramVec
	tainted prometheus.Counter
}

// How an action ended, in metrics.
const (
	endOK      = "ok"
	endFailed  = "failed" // the command said so
	endTimeout = "timeout"
	endRefused = "refused" // its author's fault, found by us
	endTrouble = "trouble" // ours
)

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		actions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "remex_actions_total", Help: "Actions run, by how they ended.",
		}, []string{"end"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "remex_action_stage_seconds", Help: "Time that actions spent in each stage.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 4, 10),
		}, []string{"stage"}),
		tainted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "remex_actions_changed_inputs_total", Help: "Actions whose result was discarded because linked inputs had changed.",
		}),
	}
	if reg != nil {
		reg.MustRegister(m.actions, m.seconds, m.tainted)
	}
	return m
}

func (m *metrics) stages(r *run) {
	for _, s := range []struct {
		name     string
		from, to time.Time
	}{{"inputs", r.p.began, r.fetched}, {"run", r.exit.Started, r.exit.Ended}, {"outputs", r.exit.Ended, r.completed}} {
		m.seconds.WithLabelValues(s.name).Observe(s.to.Sub(s.from).Seconds())
	}
}
