package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// ByteSize is a number of bytes, written as "10GiB", "500MB" or "4096".
type ByteSize int64

// The binary units.
const (
	KiB ByteSize = 1 << 10
	MiB ByteSize = 1 << 20
	GiB ByteSize = 1 << 30
	TiB ByteSize = 1 << 40
)

// units are in the order in which String prefers them.
var units = []struct {
	name string
	size ByteSize
}{
	{"TiB", TiB},
	{"GiB", GiB},
	{"MiB", MiB},
	{"KiB", KiB},
	{"TB", 1e12},
	{"GB", 1e9},
	{"MB", 1e6},
	{"kB", 1e3},
	{"B", 1},
}

// ParseByteSize reads a whole number and a unit. Units that leave open whether
// they are powers of 2 or of 10 ("10G") are refused.
func ParseByteSize(s string) (ByteSize, error) {
	digits := len(s) - len(strings.TrimLeft(s, "0123456789"))
	number, unit := s[:digits], strings.TrimLeft(s[digits:], " ")
	if number == "" {
		return 0, fmt.Errorf("%q is no size: write a whole number and a unit, as in 10GiB", s)
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("size %q is too large", s)
	}
	size, ok := unitSize(unit)
	if !ok {
		return 0, fmt.Errorf("size %q has no known unit: use B, KiB, MiB, GiB, TiB (powers of 1024) or kB, MB, GB, TB (powers of 1000)", s)
	}
	if n > math.MaxInt64/int64(size) {
		return 0, fmt.Errorf("size %q is too large", s)
	}
	return ByteSize(n) * size, nil
}

func unitSize(unit string) (ByteSize, bool) {
	if unit == "" {
		return 1, true
	}
	for _, u := range units {
		if strings.EqualFold(unit, u.name) {
			return u.size, true
		}
	}
	return 0, false
}

// String is the shortest exact spelling; ParseByteSize reads it back.
func (b ByteSize) String() string {
	for _, u := range units {
		if b != 0 && b%u.size == 0 && u.size > 1 {
			return strconv.FormatInt(int64(b/u.size), 10) + u.name
		}
	}
	return strconv.FormatInt(int64(b), 10) + "B"
}
