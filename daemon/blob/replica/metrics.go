package replica

import (
	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	short     prometheus.Counter
	skips     prometheus.Counter
	waits     prometheus.Counter
	failovers prometheus.Counter
	corrupt   prometheus.Counter
	repairs   *prometheus.CounterVec
	waiting   prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "remex", Subsystem: "replica", Name: name, Help: help})
	}
	m := &metrics{
		short:     counter("short_writes_total", "Blobs acknowledged with fewer copies than wanted, as no further disk was left to ask."),
		skips:     counter("skipped_disks_total", "Disks passed over for one blob: they refused, were out of reach, or broke off."),
		waits:     counter("waits_total", "Times a request waited because nobody could tell or take a blob."),
		failovers: counter("read_failovers_total", "Reads that went on from another disk."),
		corrupt:   counter("corrupt_copies_total", "Copies that a read found corrupt."),
		repairs: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "remex", Subsystem: "replica", Name: "repairs_total",
			Help: "Blobs that lacked copies, by what became of them.",
		}, []string{"outcome"}),
		waiting: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: "remex", Subsystem: "replica", Name: "repairs_waiting",
			Help: "Blobs known to lack copies.",
		}),
	}
	if reg != nil {
		reg.MustRegister(m.short, m.skips, m.waits, m.failovers, m.corrupt, m.repairs, m.waiting)
	}
	return m
}
