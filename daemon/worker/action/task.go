package action

import "github.com/remex-build/terraform-provider-remex/daemon/worker"

// Task is one attempt to run an action.
type Task = worker.Task

var _ worker.Actions = (*Actions)(nil)
