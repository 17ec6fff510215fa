package actioncache

import "github.com/prometheus/client_golang/prometheus"

// metrics are a client's.
type metrics struct {
	gets      *prometheus.CounterVec // by answer and who gave it
	puts      *prometheus.CounterVec // by what came of them
	journaled *prometheus.CounterVec // entries handed to disks, by what came of them
	settled   prometheus.Gauge
	listed    prometheus.Counter
	refused   prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, memory *Memory) *metrics {
	m := &metrics{
		gets: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "remex_action_cache_gets_total", Help: "Look-ups, by their answer and who gave it.",
		}, []string{"answer", "by"}),
		puts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "remex_action_cache_puts_total", Help: "Writes, by whether a scheduler took them.",
		}, []string{"result"}),
		journaled: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "remex_action_cache_journal_appends_total", Help: "Copies of entries for the workers' disks, by what came of them.",
		}, []string{"result"}),
		settled: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "remex_action_cache_settled", Help: "1 while this scheduler knows of every entry of its keys.",
		}),
		listed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "remex_action_cache_listed_entries_total", Help: "Entries in the lists of other nodes.",
		}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "remex_action_cache_refused_entries_total", Help: "Entries that were malformed, or stamped too far ahead.",
		}),
	}
	if reg == nil {
		return m
	}
	reg.MustRegister(m.gets, m.puts, m.journaled, m.settled, m.listed, m.refused)
	if memory != nil {
		reg.MustRegister(
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{
				Name: "remex_action_cache_entries", Help: "Entries in memory.",
			}, func() float64 { return float64(memory.Stats().Entries) }),
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{
				Name: "remex_action_cache_bytes", Help: "Bytes of entries in memory, with what keeping them costs.",
			}, func() float64 { return float64(memory.Stats().Bytes) }),
			prometheus.NewCounterFunc(prometheus.CounterOpts{
				Name: "remex_action_cache_evictions_total", Help: "Entries that had to make room for others.",
			}, func() float64 { return float64(memory.Stats().Evictions) }),
		)
	}
	return m
}

type journalMetrics struct {
	corrupt     prometheus.Counter
	evicted     prometheus.Counter
	compactions prometheus.Counter
}

func newJournalMetrics(reg prometheus.Registerer, j *Journal) *journalMetrics {
	m := &journalMetrics{
		corrupt: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "remex_action_journal_corrupt_bytes_total", Help: "Bytes on the disk that were torn or had a wrong checksum.",
		}),
		evicted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "remex_action_journal_evicted_entries_total", Help: "Entries dropped with the oldest segment to stay in the budget.",
		}),
		compactions: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "remex_action_journal_compactions_total", Help: "Sparse segments that were rewritten.",
		}),
	}
	if reg == nil {
		return m
	}
	reg.MustRegister(
		m.corrupt, m.evicted, m.compactions,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "remex_action_journal_entries", Help: "Entries in the journal.",
		}, func() float64 { return float64(j.Stats().Entries) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "remex_action_journal_bytes", Help: "Bytes of the journal's files.",
		}, func() float64 { return float64(j.Stats().Bytes) }),
	)
	return m
}
