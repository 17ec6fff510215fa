package disk

import (
	"encoding/binary"
	"hash/crc32"

	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

// The encodings on disk; DESIGN.md describes them. A change to any of them
// needs a new version in idHeader and in the magic of the file that changed.

const (
	segMagic   = "remexseg1\n\x00\x00\x00\x00\x00\x00" // 16 bytes
	indexMagic = "remexidx1\n\x00\x00\x00\x00\x00\x00" // 16 bytes
	magicSize  = 16

	recMagic  = 0xb7
	recHeader = 16 // before the hash

	idxHeader = 32 // before the hash
)

// What a segment's record holds: a blob, stored as one of the kinds, or the
// sums of a blob that is a file.
const recSums = 3

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

// recordSize is the length of a record with n bytes under a hash of d's kind.
func recordSize(d digest.Digest, n int64) int64 {
	return recHeader + int64(d.Function().HashSize()) + n
}

// appendRecordHeader appends what stands before a record's bytes. For a blob
// n is its size; for sums it is theirs, and the blob's size is in them.
func appendRecordHeader(b []byte, d digest.Digest, what uint8, n int, sum uint32) []byte {
	at := len(b)
	b = append(b, 0, 0, 0, 0, recMagic, byte(d.Function()), what, 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(n))
	b = binary.LittleEndian.AppendUint32(b, sum)
	b = d.AppendHash(b)
	binary.LittleEndian.PutUint32(b[at:], checksum(b[at+4:]))
	return b
}

// header is a record's header, read back.
type header struct {
	fn   digest.Function
	what uint8
	size int // of the header
	n    int // of the bytes that follow
	sum  uint32
	hash []byte
}

// parseRecordHeader reads a header at the start of b; ok is false when there
// is none or it is damaged.
func parseRecordHeader(b []byte) (h header, ok bool) {
	if len(b) < recHeader || b[4] != recMagic {
		return header{}, false
	}
	h.fn = digest.Function(b[5])
	h.what = b[6]
	h.size = recHeader + h.fn.HashSize()
	if h.size == recHeader || len(b) < h.size || checksum(b[4:h.size]) != binary.LittleEndian.Uint32(b) {
		return header{}, false
	}
	h.n = int(binary.LittleEndian.Uint32(b[8:]))
	h.sum = binary.LittleEndian.Uint32(b[12:])
	h.hash = b[recHeader:h.size]
	return h, true
}

// The operations of an index file.
const (
	opSet  = 1 // the entry is so from here on
	opDrop = 2 // the entry that lay at this place is gone
	opMark = 3 // all records of the segment before the offset are in the index file
	opEnd  = 4 // the snapshot is whole
)

// appendIndexRecord appends one operation; d is the zero Digest for marks.
func appendIndexRecord(b []byte, op uint8, d digest.Digest, e entry) []byte {
	at := len(b)
	b = append(b, 0, 0, 0, 0, op, byte(d.Function()), byte(e.kind), byte(e.flags&flagsKept))
	b = binary.LittleEndian.AppendUint32(b, e.place.seg)
	b = binary.LittleEndian.AppendUint32(b, e.place.off)
	b = binary.LittleEndian.AppendUint32(b, e.sum)
	b = binary.LittleEndian.AppendUint32(b, e.touch)
	b = binary.LittleEndian.AppendUint64(b, uint64(d.Size()))
	b = d.AppendHash(b)
	binary.LittleEndian.PutUint32(b[at:], checksum(b[at+4:]))
	return b
}

// parseIndexRecord reads one operation off the front of b. n is its length,
// 0 when b is too short for it; ok is false when it is damaged.
func parseIndexRecord(b []byte) (op uint8, d digest.Digest, e entry, n int, ok bool) {
	if len(b) < idxHeader {
		return 0, d, e, 0, false
	}
	fn := digest.Function(b[5])
	n = idxHeader + fn.HashSize()
	if len(b) < n {
		return 0, d, e, 0, false
	}
	if checksum(b[4:n]) != binary.LittleEndian.Uint32(b) {
		return 0, d, e, n, false
	}
	op = b[4]
	e = entry{
		place: place{binary.LittleEndian.Uint32(b[8:]), binary.LittleEndian.Uint32(b[12:])},
		sum:   binary.LittleEndian.Uint32(b[16:]),
		touch: binary.LittleEndian.Uint32(b[20:]),
		kind:  Kind(b[6]),
		flags: uint16(b[7]) & flagsKept,
	}
	if op == opSet || op == opDrop {
		var err error
		d, err = digest.New(fn, b[idxHeader:n], int64(binary.LittleEndian.Uint64(b[24:])))
		if err != nil || (e.kind != Owned && e.kind != Cached) {
			return 0, d, e, n, false
		}
	}
	return op, d, e, n, true
}
