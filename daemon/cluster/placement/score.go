package placement

import (
	"encoding/binary"
	"math/bits"
	"strings"
	"sync"

	"github.com/cespare/xxhash/v2"

	"github.com/remex-build/terraform-provider-remex/daemon/cluster"
)

// Every node must rank alike, whatever its architecture: a float's last bit may
// differ between compilers (fused multiply-add), so everything here is integers.

const (
	// fraction is how many bits of a fixed-point logarithm stand after the
	// point. The largest, 64, is then 2^63.
	fraction = 57
	// logBits is the logarithm table's resolution. Between its entries lies a
	// straight line: the error is below 2^-22, and the curve stays monotonic.
	logBits = 10

	golden = 0x9e3779b97f4a7c15
)

// logTable holds log2(1 + i/2^logBits).
var logTable = sync.OnceValue(func() *[1<<logBits + 1]uint64 {
	t := new([1<<logBits + 1]uint64)
	for i := range 1 << logBits {
		// Squaring a number in [1, 2) yields its logarithm's next bit.
		x := uint64(1)<<63 | uint64(i)<<(63-logBits)
		for bit := uint64(1) << (fraction - 1); bit > 0; bit >>= 1 {
			hi, lo := bits.Mul64(x, x)
			if hi>>63 == 1 {
				t[i] |= bit
				x = hi
			} else {
				x = hi<<1 | lo>>63
			}
		}
	}
	t[1<<logBits] = 1 << fraction
	return t
})

// negLog is -log2(u / 2^64) in fixed point: exponentially distributed when u
// is uniform.
func negLog(t *[1<<logBits + 1]uint64, u uint64) uint64 {
	u |= 1
	lz := uint(bits.LeadingZeros64(u))
	m := u << lz & (1<<63 - 1)
	i, rest := m>>(63-logBits), m&(1<<(63-logBits)-1)
	hi, lo := bits.Mul64(t[i+1]-t[i], rest)
	between := hi<<(logBits+1) | lo>>(63-logBits)
	return uint64(lz+1)<<fraction - t[i] - between
}

// mix is a bijection of 64 bits whose output looks random (splitmix64).
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// scorer is what a disk's scores are made of.
type scorer struct {
	seed uint64
	inv  uint64 // 2^64 / weight
}

func newScorer(id cluster.DiskID, weight uint32) scorer {
	return scorer{seed: xxhash.Sum64(id[:]), inv: ^uint64(0) / uint64(max(weight, 1))}
}

// score is the disk's distance from partition p, -log2(u)/weight: the lowest
// is first, and a disk is first as often as its share of all weights.
func (s scorer) score(t *[1<<logBits + 1]uint64, p uint16) uint64 {
	hi, _ := bits.Mul64(negLog(t, mix(s.seed+(uint64(p)+1)*golden)), s.inv)
	return hi
}

// Rendezvous ranks nodes for a key and returns the indexes of the first n (or
// all, when they are fewer). The order of nodes doesn't matter, and a node that
// comes or goes moves only the keys that it gets or had.
func Rendezvous(key uint64, nodes []string, n int) []int {
	n = min(n, len(nodes))
	if n <= 0 {
		return nil
	}
	best := make([]int, 0, n)
	scores := make([]uint64, 0, n)
	k := mix(key + golden)
	for i, node := range nodes {
		s := mix(xxhash.Sum64String(node) ^ k)
		at := len(best)
		for at > 0 && (s > scores[at-1] || s == scores[at-1] && strings.Compare(node, nodes[best[at-1]]) < 0) {
			at--
		}
		if at == n {
			continue
		}
		if len(best) < n {
			best, scores = append(best, 0), append(scores, 0)
		}
		copy(best[at+1:], best[at:])
		copy(scores[at+1:], scores[at:])
		best[at], scores[at] = i, s
	}
	return best
}

// hashInputs names a table by what it was computed of.
func hashInputs(disks []Disk, r int) uint64 {
	h := xxhash.New()
	b := binary.BigEndian.AppendUint32(nil, Version)
	b = binary.BigEndian.AppendUint32(b, uint32(r))
	_, _ = h.Write(b)
	for _, d := range disks {
		b = append(b[:0], d.ID[:]...)
		b = binary.BigEndian.AppendUint32(b, d.Weight)
		b = binary.BigEndian.AppendUint32(b, uint32(len(d.Zone)))
		b = append(b, d.Zone...)
		_, _ = h.Write(b)
	}
	return h.Sum64()
}
