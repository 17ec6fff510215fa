package replica

import (
	"testing"

	"github.com/remex-build/terraform-provider-remex/daemon/blob"
	"github.com/remex-build/terraform-provider-remex/daemon/blob/blobtest"
)

func TestContract(t *testing.T) {
	t.Parallel()
	t.Run("on a scheduler", func(t *testing.T) {
		t.Parallel()
		blobtest.Suite(t, func(t *testing.T) blob.Store { return newCluster(t, 3, options{}).Store })
	})
	t.Run("on a worker", func(t *testing.T) {
		t.Parallel()
		blobtest.Suite(t, func(t *testing.T) blob.Store { return newCluster(t, 3, options{}).nodes[0].store })
	})
}
