package disk

import (
	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	reg prometheus.Registerer
	all []prometheus.Collector

	corrupt, refused, rewritten, scrubbed, torn prometheus.Counter
	evicted, evictedBytes                       *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer, s *Store) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "remex_disk_" + name, Help: help})
	}
	vec := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "remex_disk_" + name, Help: help}, []string{"kind"})
	}
	m := &metrics{
		reg:          reg,
		corrupt:      counter("corrupt_total", "Copies dropped because their bytes were wrong or gone."),
		refused:      counter("refused_total", "Writes refused for want of room."),
		rewritten:    counter("segments_rewritten_total", "Sparse segments rewritten."),
		scrubbed:     counter("scrubbed_bytes_total", "Bytes read by the scrubber."),
		torn:         counter("torn_total", "Entries dropped at start because their bytes had not reached the disk."),
		evicted:      vec("evicted_total", "Copies evicted, by kind."),
		evictedBytes: vec("evicted_bytes_total", "Bytes of copies evicted, by kind."),
	}
	m.all = []prometheus.Collector{m.corrupt, m.refused, m.rewritten, m.scrubbed, m.torn, m.evicted, m.evictedBytes, newGauges(s)}
	if reg != nil {
		reg.MustRegister(m.all...)
	}
	return m
}

func (m *metrics) unregister() {
	if m.reg == nil {
		return
	}
	for _, c := range m.all {
		m.reg.Unregister(c)
	}
}

// gauges turns Stats into metrics when they are asked for.
type gauges struct {
	s                                                   *Store
	capacity, used, free, blobs, bytes, variants, files *prometheus.Desc
}

func newGauges(s *Store) *gauges {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("remex_disk_"+name, help, labels, nil)
	}
	return &gauges{
		s:        s,
		capacity: desc("capacity_bytes", "Bytes that the disk offers for blobs."),
		used:     desc("used_bytes", "Bytes that blobs occupy in all forms."),
		free:     desc("filesystem_free_bytes", "Bytes that the file system has free."),
		blobs:    desc("blobs", "Copies on the disk, by kind.", "kind"),
		bytes:    desc("blob_bytes", "Bytes of the copies' blobs, by kind.", "kind"),
		variants: desc("link_files", "Files made for hard links to point to."),
		files:    desc("segments", "Segment files."),
	}
}

// Describe is for prometheus.
func (g *gauges) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(g, ch) }

// Collect is for prometheus.
func (g *gauges) Collect(ch chan<- prometheus.Metric) {
	st := g.s.Stats()
	set := func(d *prometheus.Desc, v int64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
	}
	set(g.capacity, st.Capacity)
	set(g.used, st.Used)
	set(g.free, st.Free)
	set(g.blobs, st.OwnedBlobs, Owned.String())
	set(g.blobs, st.CachedBlobs, Cached.String())
	set(g.bytes, st.OwnedBytes, Owned.String())
	set(g.bytes, st.CachedBytes, Cached.String())
	set(g.variants, st.Variants)
	set(g.files, st.Segments)
}
