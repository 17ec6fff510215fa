package frontend

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	inFlight *prometheus.GaugeVec
	panics   prometheus.Counter
	bytesIn  prometheus.Counter
	bytesOut prometheus.Counter
	lookups  *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := promauto.With(reg)
	return &metrics{
		requests: m.NewCounterVec(prometheus.CounterOpts{
			Name: "remex_frontend_requests_total", Help: "Calls that ended, by method and gRPC code.",
		}, []string{"method", "code"}),
		seconds: m.NewHistogramVec(prometheus.HistogramOpts{
			Name: "remex_frontend_request_seconds", Help: "How long calls took, streams to their end.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 1800},
		}, []string{"method"}),
		inFlight: m.NewGaugeVec(prometheus.GaugeOpts{
			Name: "remex_frontend_requests_in_flight", Help: "Calls being served.",
		}, []string{"method"}),
		panics: m.NewCounter(prometheus.CounterOpts{
			Name: "remex_frontend_panics_total", Help: "Calls that ended in a panic, each a bug.",
		}),
		bytesIn: m.NewCounter(prometheus.CounterOpts{
			Name: "remex_frontend_received_bytes_total", Help: "Bytes of blobs that clients sent.",
		}),
		bytesOut: m.NewCounter(prometheus.CounterOpts{
			Name: "remex_frontend_sent_bytes_total", Help: "Bytes of blobs sent to clients.",
		}),
		lookups: m.NewCounterVec(prometheus.CounterOpts{
			Name: "remex_frontend_action_lookups_total",
			Help: "Action results looked up: hit, miss, incomplete (a blob is gone), oversize, error.",
		}, []string{"outcome"}),
	}
}
