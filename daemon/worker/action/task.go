package action

import (
	"time"

	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

// Task is one attempt to run an action.
type Task struct {
	ID                                          string
	Attempt                                     uint32
	Instance                                    string
	Action                                      digest.Digest
	DoNotCache                                  bool
	Metadata, ActionBlob, CommandBlob, RootBlob []byte
	QueuedAt                                    time.Time
}
