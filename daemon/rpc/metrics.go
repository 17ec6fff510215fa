package rpc

import (
	"github.com/prometheus/client_golang/prometheus"

	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
)

type metrics struct {
	calls  *prometheus.CounterVec
	frames prometheus.Counter
	sent   prometheus.Counter
	peers  prometheus.Gauge
	breaks prometheus.Counter
}

// newMetrics makes the metrics of outgoing calls; reg may be nil.
func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "remex_rpc_calls_total", Help: "Calls to other nodes, by method and by the code of the outcome.",
		}, []string{"method", "code"}),
		frames: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "remex_rpc_frames_total", Help: "Frames in which calls were sent to other nodes.",
		}),
		sent: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "remex_rpc_sent_calls_total", Help: "Calls and cancellations sent in frames; over remex_rpc_frames_total: how many travelled together.",
		}),
		peers: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "remex_rpc_streams", Help: "Nodes with a working stream of calls.",
		}),
		breaks: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "remex_rpc_broken_streams_total", Help: "Streams of calls that ended other than by being idle, and dials that failed.",
		}),
	}
	if reg != nil {
		reg.MustRegister(m.calls, m.frames, m.sent, m.peers, m.breaks)
	}
	return m
}

func (m *metrics) call(method pb.Method, err error) {
	m.calls.WithLabelValues(method.String(), CodeOf(err).String()).Inc()
}
