// Package digest owns the names of blobs: a digest function, a hash and a size.
//
// A Digest is a small comparable value, and malformed input cannot become one:
// New, Parse, ParseResource and Unpack are the only ways in. The package knows
// every digest function of the Remote Execution API; which of them a cluster
// announces is decided by its services.
package digest

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
)

// MaxHashSize is the length in bytes of the longest hash of any Function.
const MaxHashSize = 64

// ErrMalformed is wrapped by every error about text or bytes that name no blob.
var ErrMalformed = errors.New("malformed digest")

// Digest names a blob. It is comparable and passed by value; the zero Digest
// names nothing.
type Digest struct {
	size int64
	fn   Function
	hash [MaxHashSize]byte
}

// New makes a Digest of a raw hash, whose length must be fn's.
func New(fn Function, hash []byte, size int64) (Digest, error) {
	if !fn.Known() {
		return Digest{}, fmt.Errorf("%w: unknown digest function %d", ErrMalformed, fn)
	}
	if len(hash) != fn.HashSize() {
		return Digest{}, fmt.Errorf("%w: a %s hash has %d bytes, not %d", ErrMalformed, fn, fn.HashSize(), len(hash))
	}
	if size < 0 {
		return Digest{}, fmt.Errorf("%w: negative size %d", ErrMalformed, size)
	}
	d := Digest{size: size, fn: fn}
	copy(d.hash[:], hash)
	return d, nil
}

// Parse makes a Digest of a hash in lower-case hexadecimal, as REAPI's Digest
// message carries it.
func Parse(fn Function, hash string, size int64) (Digest, error) {
	if !fn.Known() {
		return Digest{}, fmt.Errorf("%w: unknown digest function %d", ErrMalformed, fn)
	}
	if len(hash) != 2*fn.HashSize() {
		return Digest{}, fmt.Errorf("%w: a %s hash has %d characters, not %d", ErrMalformed, fn, 2*fn.HashSize(), len(hash))
	}
	if size < 0 {
		return Digest{}, fmt.Errorf("%w: negative size %d", ErrMalformed, size)
	}
	d := Digest{size: size, fn: fn}
	for i := range fn.HashSize() {
		hi, lo := unhex(hash[2*i]), unhex(hash[2*i+1])
		if hi > 15 || lo > 15 {
			return Digest{}, fmt.Errorf("%w: hash %q is not lower-case hexadecimal", ErrMalformed, hash)
		}
		d.hash[i] = hi<<4 | lo
	}
	return d, nil
}

// unhex returns 0xff for what is no lower-case hexadecimal digit: REAPI's
// hashes are lower case, and two spellings of one blob would be two blobs.
func unhex(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	}
	return 0xff
}

// Function is the digest function that d's hash is of.
func (d Digest) Function() Function { return d.fn }

// Size is the blob's length in bytes.
func (d Digest) Size() int64 { return d.size }

// IsZero reports whether d is the zero Digest, which names nothing.
func (d Digest) IsZero() bool { return d.fn == 0 }

// IsEmpty reports whether d names the empty blob, which every store holds
// without having been given it. A size of 0 under another hash is not it.
func (d Digest) IsEmpty() bool {
	return d.size == 0 && d.fn.Computable() && d == Empty(d.fn)
}

// HashBytes is the raw hash. The caller owns the copy.
func (d Digest) HashBytes() []byte { return append([]byte(nil), d.hash[:d.fn.HashSize()]...) }

// AppendHash appends the raw hash to b.
func (d Digest) AppendHash(b []byte) []byte { return append(b, d.hash[:d.fn.HashSize()]...) }

// Prefix is the hash's first 16 bits: the blob's partition.
func (d Digest) Prefix() uint16 { return uint16(d.hash[0])<<8 | uint16(d.hash[1]) }

// Hash is the hash in lower-case hexadecimal.
func (d Digest) Hash() string { return hex.EncodeToString(d.hash[:d.fn.HashSize()]) }

// String is "hash/size", with "function/" before it for the functions that
// REAPI wants named (SHA256TREE, BLAKE3, GITSHA1): what stands after "blobs/" in
// a ByteStream resource name and in the subject of a MISSING violation.
func (d Digest) String() string {
	s := d.Hash() + "/" + strconv.FormatInt(d.size, 10)
	if !functions[d.fn].named {
		return s
	}
	return d.fn.String() + "/" + s
}

// Compare orders digests by function, hash and size.
func (d Digest) Compare(e Digest) int {
	if d.fn != e.fn {
		return int(d.fn) - int(e.fn)
	}
	for i := range d.hash {
		if d.hash[i] != e.hash[i] {
			return int(d.hash[i]) - int(e.hash[i])
		}
	}
	switch {
	case d.size < e.size:
		return -1
	case d.size > e.size:
		return 1
	}
	return 0
}
