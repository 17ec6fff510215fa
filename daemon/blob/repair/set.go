package repair

import (
	"errors"
	"math/bits"
)

// Partitions is how many there are: one for each digest.Prefix.
const Partitions = 1 << 16

const words = Partitions / 64

// Set is a set of partitions. The zero Set is empty.
type Set [words]uint64

// Has reports whether p is in s.
func (s *Set) Has(p uint16) bool { return s[p/64]>>(p%64)&1 != 0 }

// Add puts p into s.
func (s *Set) Add(p uint16) { s[p/64] |= 1 << (p % 64) }

// Remove takes p out of s.
func (s *Set) Remove(p uint16) { s[p/64] &^= 1 << (p % 64) }

// Len is how many partitions are in s.
func (s *Set) Len() (n int) {
	for _, w := range s {
		n += bits.OnesCount64(w)
	}
	return n
}

// IsEmpty reports whether nothing is in s.
func (s *Set) IsEmpty() bool { return *s == Set{} }

// All calls f with each partition of s, in order, until f returns false.
func (s *Set) All(f func(p uint16) bool) {
	for i, w := range s {
		for ; w != 0; w &= w - 1 {
			if !f(uint16(i*64 + bits.TrailingZeros64(w))) {
				return
			}
		}
	}
}

// Append packs s: runs of words that are zero cost two bytes, others eight each
// and two for a run.
func (s *Set) Append(b []byte) []byte {
	for i := 0; i < words; {
		zero := i
		for zero < words && s[zero] == 0 && zero-i < 255 {
			zero++
		}
		full := zero
		for full < words && s[full] != 0 && full-zero < 255 {
			full++
		}
		b = append(b, byte(zero-i), byte(full-zero))
		for _, w := range s[zero:full] {
			for k := range 8 {
				b = append(b, byte(w>>(8*k)))
			}
		}
		i = full
	}
	return b
}

var errSet = errors.New("malformed set of partitions")

// ParseSet is the inverse of Append.
func ParseSet(b []byte) (*Set, error) {
	s := new(Set)
	at := 0
	for len(b) > 0 {
		if len(b) < 2 {
			return nil, errSet
		}
		zero, full := int(b[0]), int(b[1])
		b = b[2:]
		if zero+full == 0 || at+zero+full > words || len(b) < 8*full {
			return nil, errSet
		}
		at += zero
		for range full {
			for k := range 8 {
				s[at] |= uint64(b[k]) << (8 * k)
			}
			b = b[8:]
			at++
		}
	}
	if at != words {
		return nil, errSet
	}
	return s, nil
}
