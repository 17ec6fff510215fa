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
	relayed   prometheus.Counter
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
		relayed:   counter("relayed_calls_total", "Calls that another node passed on, as this one did not reach the disk."),
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
		reg.MustRegister(m.short, m.skips, m.waits, m.failovers, m.corrupt, m.relayed, m.repairs, m.waiting)
	}
	return m
}

// keeperMetrics are of a worker's own disk.
type keeperMetrics struct {
	fetched, fetchedBytes, given, gone prometheus.Counter
}

func newKeeperMetrics(reg prometheus.Registerer, k *keeper) *keeperMetrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "remex", Subsystem: "repair", Name: name, Help: help})
	}
	m := &keeperMetrics{
		fetched:      counter("fetched_blobs_total", "Blobs that the disk owned and lacked, and got from others."),
		fetchedBytes: counter("fetched_bytes_total", "Their bytes."),
		given:        counter("given_up_blobs_total", "Copies no longer kept for the cluster, as their owners have confirmed theirs."),
		gone:         counter("lost_blobs_total", "Blobs that the disk was told of and that nobody has any more."),
	}
	if reg == nil {
		return m
	}
	gauge := func(name, help string, f func(Keeping) float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "remex", Subsystem: "repair", Name: name, Help: help},
			func() float64 { return f(k.status()) })
	}
	reg.MustRegister(m.fetched, m.fetchedBytes, m.given, m.gone,
		gauge("missing_blobs", "Blobs that the disk owns and has still to fetch.", func(s Keeping) float64 { return float64(s.Missing) }),
		gauge("missing_bytes", "Their bytes.", func(s Keeping) float64 { return float64(s.MissingBytes) }),
		gauge("lag_seconds", "How long the first of them has been known to be missing.", func(s Keeping) float64 { return s.Lag.Seconds() }),
		gauge("unsettled_partitions", "Partitions that the disk owns and cannot yet tell what is missing in.", func(s Keeping) float64 { return float64(s.Owned - s.Settled) }),
		gauge("foreign_blobs", "Owned copies whose owners are others, who have not confirmed theirs yet.", func(s Keeping) float64 { return float64(s.Foreign) }),
	)
	return m
}
