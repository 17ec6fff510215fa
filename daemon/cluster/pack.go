package cluster

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf8"
)

// packVersion is the first byte of a packed Member. Fields are only ever added
// at the end, where nodes that don't know them ignore them; another version
// would be another cluster.
const packVersion = 1

// maxPacked is how much gossip carries about a node.
const maxPacked = 512

var errMeta = errors.New("malformed member")

// pack packs all of m but its ID, which gossip carries as the node's name.
func (m *Member) pack() ([]byte, error) {
	for _, f := range m.texts() {
		if !utf8.ValidString(*f.text) {
			return nil, fmt.Errorf("member's %s %q is not UTF-8", f.name, *f.text)
		}
	}
	b := []byte{packVersion, byte(m.Role), byte(m.State)}
	b = binary.BigEndian.AppendUint64(b, uint64(m.Boot))
	b = append(b, m.Disk[:]...)
	b = binary.AppendUvarint(b, uint64(m.Weight))
	b = binary.AppendUvarint(b, uint64(m.Version))
	longest := m.texts()[0]
	for _, f := range m.texts() {
		b = binary.AppendUvarint(b, uint64(len(*f.text)))
		b = append(b, *f.text...)
		if len(*f.text) > len(*longest.text) {
			longest = f
		}
	}
	if len(b) > maxPacked {
		return nil, fmt.Errorf("what gossip tells of this node takes %d bytes of at most %d: shorten its %s (%d bytes)",
			len(b), maxPacked, longest.name, len(*longest.text))
	}
	return b, nil
}

type text struct {
	name string
	text *string
}

// texts are the fields of variable length, in the order in which they are packed.
func (m *Member) texts() [5]text {
	return [...]text{
		{"name", &m.Name},
		{"pool", &m.Pool},
		{"zone", &m.Zone},
		{"cluster address", &m.Addr},
		{"ops address", &m.Ops},
	}
}

// unpack takes apart what pack put together.
func unpack(id string, b []byte) (Member, error) {
	const fixed = 3 + 8 + len(DiskID{})
	if len(b) < fixed {
		return Member{}, fmt.Errorf("%w: %d bytes", errMeta, len(b))
	}
	if b[0] != packVersion {
		return Member{}, fmt.Errorf("%w: of version %d", errMeta, b[0])
	}
	m := Member{
		ID:    id,
		Role:  Role(b[1]),
		State: State(b[2]),
		Boot:  int64(binary.BigEndian.Uint64(b[3:])),
		Disk:  DiskID(b[11:fixed]),
	}
	b = b[fixed:]
	var err error
	if m.Weight, b, err = number(b); err != nil {
		return Member{}, fmt.Errorf("%w: weight", err)
	}
	if m.Version, b, err = number(b); err != nil {
		return Member{}, fmt.Errorf("%w: version", err)
	}
	for _, f := range m.texts() {
		n, k := binary.Uvarint(b)
		if k <= 0 || n > uint64(len(b)-k) {
			return Member{}, fmt.Errorf("%w: %s", errMeta, f.name)
		}
		*f.text = string(b[k : k+int(n)])
		if !utf8.ValidString(*f.text) {
			return Member{}, fmt.Errorf("%w: %s is not UTF-8", errMeta, f.name)
		}
		b = b[k+int(n):]
	}
	return m, nil
}

func number(b []byte) (uint32, []byte, error) {
	v, k := binary.Uvarint(b)
	if k <= 0 || v > 1<<32-1 {
		return 0, nil, errMeta
	}
	return uint32(v), b[k:], nil
}
