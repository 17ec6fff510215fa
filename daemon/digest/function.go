package digest

import (
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"hash"
	"sync"

	"github.com/zeebo/blake3"
)

// Function is a digest function of the Remote Execution API; its values are
// those of build.bazel.remote.execution.v2.DigestFunction.Value.
type Function uint8

// The digest functions of REAPI 2.12.
const (
	SHA256     Function = 1
	SHA1       Function = 2
	MD5        Function = 3
	VSO        Function = 4
	SHA384     Function = 5
	SHA512     Function = 6
	Murmur3    Function = 7
	SHA256Tree Function = 8
	BLAKE3     Function = 9
	GITSHA1    Function = 10
)

type function struct {
	name string
	size int              // of the hash, in bytes
	new  func() hash.Hash // nil where this build cannot compute it
	// named is set where resource names and requests must name the function:
	// those added since REAPI 2.5, which the length of a hash cannot tell.
	named bool
}

var functions = [...]function{
	SHA256:     {name: "sha256", size: 32, new: sha256.New},
	SHA1:       {name: "sha1", size: 20, new: sha1.New},
	MD5:        {name: "md5", size: 16, new: md5.New},
	VSO:        {name: "vso", size: 33},
	SHA384:     {name: "sha384", size: 48, new: sha512.New384},
	SHA512:     {name: "sha512", size: 64, new: sha512.New},
	Murmur3:    {name: "murmur3", size: 16},
	SHA256Tree: {name: "sha256tree", size: 32, named: true},
	BLAKE3:     {name: "blake3", size: 32, new: func() hash.Hash { return blake3.New() }, named: true},
	GITSHA1:    {name: "gitsha1", size: 20, named: true},
}

// Known reports whether f is one of REAPI's functions.
func (f Function) Known() bool { return f > 0 && int(f) < len(functions) }

// Computable reports whether this build can hash with f.
func (f Function) Computable() bool { return f.Known() && functions[f].new != nil }

// HashSize is the length in bytes of f's hashes, 0 for an unknown function.
func (f Function) HashSize() int {
	if !f.Known() {
		return 0
	}
	return functions[f].size
}

// String is f's name in lower case, as it stands in resource names.
func (f Function) String() string {
	if !f.Known() {
		return "unknown"
	}
	return functions[f].name
}

// FunctionByName finds the function that a resource name names.
func FunctionByName(name string) (Function, bool) {
	for f := SHA256; f.Known(); f++ {
		if functions[f].name == name {
			return f, true
		}
	}
	return 0, false
}

// Infer finds the function that a hash of n hexadecimal characters has when
// nothing names it (REAPI: the clients that predate digest_function fields).
// MD5 is preferred to Murmur3, whose hashes are as long.
func Infer(n int) (Function, bool) {
	for f := SHA256; f.Known(); f++ {
		if !functions[f].named && 2*functions[f].size == n {
			return f, true
		}
	}
	return 0, false
}

// NewHash starts a hash with f, which must be Computable.
func (f Function) NewHash() hash.Hash { return functions[f].new() }

// Of names the blob b with f, which must be Computable.
func Of(f Function, b []byte) Digest {
	d := Digest{size: int64(len(b)), fn: f}
	switch f {
	case SHA256:
		h := sha256.Sum256(b)
		copy(d.hash[:], h[:])
	case BLAKE3:
		h := blake3.Sum256(b)
		copy(d.hash[:], h[:])
	default:
		h := f.NewHash()
		h.Write(b)
		h.Sum(d.hash[:0])
	}
	return d
}

var empties = sync.OnceValue(func() (e [len(functions)]Digest) {
	for f := SHA256; f.Known(); f++ {
		if f.Computable() {
			e[f] = Of(f, nil)
		}
	}
	return e
})

// Empty names the empty blob.
func Empty(f Function) Digest { return empties()[f] }

// Hasher names what is written to it. It is not safe for concurrent use.
type Hasher struct {
	fn   Function
	h    hash.Hash
	size int64
}

// NewHasher starts a Hasher with f, which must be Computable.
func NewHasher(f Function) *Hasher { return &Hasher{fn: f, h: f.NewHash()} }

// Write never fails.
func (h *Hasher) Write(p []byte) (int, error) {
	h.size += int64(len(p))
	return h.h.Write(p)
}

// Size is how many bytes were written so far.
func (h *Hasher) Size() int64 { return h.size }

// Digest names what was written so far.
func (h *Hasher) Digest() Digest {
	d := Digest{size: h.size, fn: h.fn}
	h.h.Sum(d.hash[:0])
	return d
}
