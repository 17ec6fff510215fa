package digest

import (
	"encoding/binary"
	"fmt"
)

// Append packs d: the function's byte, the hash, the size as a varint. It is
// the form in which digests travel between nodes and lie on disks.
func (d Digest) Append(b []byte) []byte {
	b = append(b, byte(d.fn))
	b = d.AppendHash(b)
	return binary.AppendUvarint(b, uint64(d.size))
}

// Pack packs several digests one after another.
func Pack(ds []Digest) []byte {
	b := make([]byte, 0, len(ds)*38)
	for _, d := range ds {
		b = d.Append(b)
	}
	return b
}

// Next takes one packed Digest off the front of b.
func Next(b []byte) (d Digest, rest []byte, err error) {
	if len(b) == 0 {
		return Digest{}, nil, fmt.Errorf("%w: nothing there", ErrMalformed)
	}
	fn := Function(b[0])
	n := fn.HashSize()
	if n == 0 || len(b) < 1+n {
		return Digest{}, nil, fmt.Errorf("%w: packed form is cut short", ErrMalformed)
	}
	size, k := binary.Uvarint(b[1+n:])
	if k <= 0 || int64(size) < 0 {
		return Digest{}, nil, fmt.Errorf("%w: packed size", ErrMalformed)
	}
	d = Digest{size: int64(size), fn: fn}
	copy(d.hash[:], b[1:1+n])
	return d, b[1+n+k:], nil
}

// Unpack takes apart what Pack put together.
func Unpack(b []byte) ([]Digest, error) {
	ds := make([]Digest, 0, len(b)/34)
	for len(b) > 0 {
		d, rest, err := Next(b)
		if err != nil {
			return nil, err
		}
		ds, b = append(ds, d), rest
	}
	return ds, nil
}
