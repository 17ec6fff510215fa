package replica

import (
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/blob/disk"
	"github.com/remex-build/terraform-provider-remex/daemon/cluster"
	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
	"github.com/remex-build/terraform-provider-remex/daemon/rpc"
)

// errCorrupt says that a disk's copy of a blob was damaged. The disk has
// dropped it; other copies may be right.
var errCorrupt = errors.New("copy is corrupt")

// code is what the error of a disk becomes between nodes. A corrupt copy has a
// code of its own, so that the reader has it replaced.
func code(err error) codes.Code {
	if errors.Is(err, disk.ErrCorrupt) {
		return codes.DataLoss
	}
	return rpc.CodeOf(err)
}

func toStatus(err error) error {
	if errors.Is(err, disk.ErrCorrupt) {
		return status.Error(codes.DataLoss, err.Error())
	}
	return rpc.ToStatus(err)
}

func toBlobStatus(err error) *pb.BlobStatus {
	if err == nil {
		return nil
	}
	return &pb.BlobStatus{Code: uint32(code(err)), Message: err.Error()}
}

// fromCode is the error that another node's code stands for.
func fromCode(c codes.Code, text string) error {
	switch c {
	case codes.OK:
		return nil
	case codes.NotFound:
		return blob.ErrNotFound
	case codes.InvalidArgument:
		return fmt.Errorf("%w: %s", blob.ErrMismatch, text)
	case codes.OutOfRange:
		return fmt.Errorf("%w: %s", blob.ErrOutOfRange, text)
	case codes.ResourceExhausted:
		return fmt.Errorf("%w: %s", blob.ErrFull, text)
	case codes.DataLoss:
		return fmt.Errorf("%w: %s", errCorrupt, text)
	}
	return fmt.Errorf("%w: %s: %s", blob.ErrUnavailable, c, text)
}

func fromBlobStatus(st *pb.BlobStatus) error {
	return fromCode(codes.Code(st.GetCode()), st.GetMessage())
}

func fromStatus(err error) error {
	if err == nil {
		return nil
	}
	return fromCode(rpc.CodeOf(err), rpc.FromStatus(err).Error())
}

// unavailable hides what err is, but not its text.
func unavailable(err error) error {
	return fmt.Errorf("%w: %s", blob.ErrUnavailable, err.Error())
}

// packPresence puts four answers into a byte, the first in its lowest bits.
func packPresence(ps []disk.Presence) []byte {
	b := make([]byte, (len(ps)+3)/4)
	for i, p := range ps {
		b[i/4] |= byte(p&3) << (2 * (i % 4))
	}
	return b
}

// presenceAt is answer i; one that is not there is "could not tell".
func presenceAt(b []byte, i int) disk.Presence {
	if i/4 >= len(b) {
		return disk.Unknown
	}
	return disk.Presence(b[i/4] >> (2 * (i % 4)) & 3)
}

func diskIDs(raw [][]byte) map[cluster.DiskID]bool {
	if len(raw) == 0 {
		return nil
	}
	ids := make(map[cluster.DiskID]bool, len(raw))
	for _, b := range raw {
		if len(b) == len(cluster.DiskID{}) {
			ids[cluster.DiskID(b)] = true
		}
	}
	return ids
}
