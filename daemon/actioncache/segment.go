package actioncache

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"

	"github.com/cespare/xxhash/v2"
	"google.golang.org/protobuf/proto"

	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
)

// A segment is a file of records, one after another:
//
//	marker   4 bytes  "RxAC"
//	length   4 bytes  of the payload, little endian
//	crc32c   4 bytes  of all that follows
//	tag     16 bytes  of the key, so that an index is built without the payload
//	stamp    8 bytes  little endian
//	payload           a serialized AcEntry
//
// What a crash or a flipped bit left unreadable is skipped: the next marker
// with a right checksum goes on.
const (
	recordHead = 36
	maxRecord  = recordHead + MaxResult + 64<<10
)

var (
	marker     = []byte("RxAC")
	castagnoli = crc32.MakeTable(crc32.Castagnoli)

	errCorrupt = errors.New("corrupt journal record")
)

// tag stands for a key in the index. A key found under another's tag is a miss:
// the record holds the whole key.
type tag [16]byte

func tagOf(k Key) tag {
	packed := k.pack()
	var t tag
	binary.LittleEndian.PutUint64(t[:], xxhash.Sum64String(packed))
	copy(t[8:], packed[1:]) // eight bytes of the hash itself
	return t
}

// record is one record of a segment, as it was found.
type record struct {
	tag   tag
	stamp int64
	off   int64 // from the start of what was scanned
	raw   []byte
}

func appendRecord(b []byte, e *Entry) ([]byte, error) {
	start := len(b)
	t := tagOf(e.Key)
	b = append(b, marker...)
	b = append(b, make([]byte, 8)...)
	b = append(b, t[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(e.Stamp))
	b, err := proto.MarshalOptions{}.MarshalAppend(b, toProto(e))
	if err != nil {
		return b[:start], fmt.Errorf("encode entry: %w", err)
	}
	r := b[start:]
	binary.LittleEndian.PutUint32(r[4:], uint32(len(r)-recordHead))
	binary.LittleEndian.PutUint32(r[8:], crc32.Checksum(r[12:], castagnoli))
	return b, nil
}

// recordSize is the whole length of the record that b starts with, 0 when
// that is none.
func recordSize(b []byte) int {
	if len(b) < recordHead || !bytes.Equal(b[:4], marker) {
		return 0
	}
	n := recordHead + int64(binary.LittleEndian.Uint32(b[4:]))
	if n > maxRecord {
		return 0
	}
	return int(n)
}

// checkRecord takes apart a whole record.
func checkRecord(raw []byte) (record, error) {
	if recordSize(raw) != len(raw) || crc32.Checksum(raw[12:], castagnoli) != binary.LittleEndian.Uint32(raw[8:]) {
		return record{}, errCorrupt
	}
	r := record{stamp: int64(binary.LittleEndian.Uint64(raw[28:])), raw: raw}
	copy(r.tag[:], raw[12:28])
	return r, nil
}

func (r *record) entry() (Entry, error) {
	p := new(pb.AcEntry)
	if err := proto.Unmarshal(r.raw[recordHead:], p); err != nil {
		return Entry{}, fmt.Errorf("%w: %w", errCorrupt, err)
	}
	return fromProto(p)
}

// scan calls f for each record of b. It returns how far it got: the start of a
// record that b holds in part, or the end of b; and how many bytes it skipped.
// whole says that nothing comes after b.
func scan(b []byte, whole bool, f func(record)) (done, skipped int) {
	for done < len(b) {
		rest := b[done:]
		n := recordSize(rest)
		if n > len(rest) && !whole {
			return done, skipped
		}
		if n > 0 && n <= len(rest) {
			if r, err := checkRecord(rest[:n]); err == nil {
				r.off = int64(done)
				f(r)
				done += n
				continue
			}
		}
		if !whole && len(rest) < recordHead {
			return done, skipped
		}
		// Not a record: on with the next marker.
		next := bytes.Index(rest[1:], marker) + 1
		if next == 0 {
			next = len(rest)
			if !whole { // the marker itself may be cut
				next = max(1, len(rest)-len(marker)+1)
			}
		}
		done += next
		skipped += next
	}
	return done, skipped
}

// segment is one file of the journal. id and file never change; the journal
// guards the rest.
type segment struct {
	id     uint32
	file   *os.File
	size   int64 // of what was written
	live   int64 // bytes of records that the index points to
	newest int64 // stamp
	unread bool  // its records are not in the index yet
}

// read reads n bytes at off.
func (s *segment) read(off, n int64) ([]byte, error) {
	b := make([]byte, n)
	if _, err := s.file.ReadAt(b, off); err != nil {
		return nil, fmt.Errorf("read %s at %d: %w", s.file.Name(), off, err)
	}
	return b, nil
}
