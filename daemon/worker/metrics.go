package worker

import (
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
)

type metrics struct {
	attempts *prometheus.CounterVec
}

// newMetrics registers with reg, unless it is nil.
func newMetrics(reg prometheus.Registerer, running func() int) *metrics {
	m := &metrics{attempts: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "remex_worker_attempts_total",
		Help: "Attempts that ended, by outcome: done, killed or trouble.",
	}, []string{"outcome"})}
	if reg != nil {
		reg.MustRegister(m.attempts, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "remex_worker_running", Help: "Executors that run an action.",
		}, func() float64 { return float64(running()) }))
	}
	return m
}

func (m *metrics) ended(code codes.Code) {
	switch code {
	case codes.OK:
		m.attempts.WithLabelValues("done").Inc()
	case codes.Canceled:
		m.attempts.WithLabelValues("killed").Inc()
	default:
		m.attempts.WithLabelValues("trouble").Inc()
	}
}
