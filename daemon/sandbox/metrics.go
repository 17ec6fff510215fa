package sandbox

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	runners   prometheus.Counter
	truncated prometheus.Counter
	budget    prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		runners: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "remex_sandbox_runners_started_total", Help: "Runner processes started; more than executors means that some died.",
		}),
		truncated: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "remex_sandbox_streams_truncated_total", Help: "Standard outputs and errors of which a part was dropped.",
		}),
		budget: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "remex_sandbox_over_budget_total", Help: "Actions killed for using more disk than their budget.",
		}),
	}
	if reg != nil {
		reg.MustRegister(m.runners, m.truncated, m.budget)
	}
	return m
}
