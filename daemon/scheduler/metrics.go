package scheduler

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/remex-build/terraform-provider-remex/daemon/scheduler/wire"
)

type metrics struct {
	offers, claims, none, killed, lost prometheus.Counter
}

// newMetrics registers with reg, unless it is nil.
func newMetrics(reg prometheus.Registerer, state func() Status) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "remex_scheduler_" + name, Help: help})
	}
	m := &metrics{
		offers: counter("offers_total", "Tasks placed on slots that were lent."),
		claims: counter("claims_total", "Tasks placed in answer to a claim."),
		none:   counter("claims_unmet_total", "Claims for which nothing waited any more."),
		killed: counter("kills_total", "Attempts that workers were told to end."),
		lost:   counter("workers_lost_total", "Workers given up because they were silent."),
	}
	if reg == nil {
		return m
	}
	gauge := func(name, help string, v func(Status) float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "remex_scheduler_" + name, Help: help},
			func() float64 { return v(state()) })
	}
	reg.MustRegister(
		m.offers, m.claims, m.none, m.killed, m.lost,
		gauge("queued", "Tasks owned here that wait for a worker.", func(s Status) float64 { return float64(s.Queued) }),
		gauge("placed", "Tasks owned here that wait on a worker for its executor or their inputs.", func(s Status) float64 { return float64(s.Placed) }),
		gauge("executing", "Tasks owned here that run.", func(s Status) float64 { return float64(s.Executing) }),
		gauge("oldest_queued_seconds", "How long the oldest waiting task waits.", func(s Status) float64 { return s.Oldest.Seconds() }),
	)
	return m
}

// sent counts what is said to workers.
func (m *metrics) sent(msg wire.ToWorker) {
	switch o := msg.(type) {
	case wire.Offer:
		if o.Claim == 0 {
			m.offers.Inc()
		} else {
			m.claims.Inc()
		}
	case wire.None:
		m.none.Inc()
	case wire.Kill:
		m.killed.Inc()
	}
}
