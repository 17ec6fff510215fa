package disk

import (
	"bytes"
	"os"
	"testing"

	"github.com/remex-build/terraform-provider-remex/daemon/blob/blobtest"
)

func TestADamagedFileIsReplacedOnceSuspected(t *testing.T) {
	s := openDisk(t, Options{})
	b := blobtest.Blob(1, 1000)
	put(t, s.Store, Owned, b)
	first := link(t, s.Store, b.Digest, true)
	if err := os.Chmod(first, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(first, []byte("damaged"), 0o700); err != nil {
		t.Fatal(err)
	}
	s.Suspect(b.Digest)
	data, err := os.ReadFile(link(t, s.Store, b.Digest, true))
	if err != nil || !bytes.Equal(data, b.Data) {
		t.Errorf("the next link has %d bytes, %v", len(data), err)
	}
}
