package action

import "github.com/remex-build/terraform-provider-remex/daemon/worker"

// Task is what a worker is given to run.
type Task = worker.Task

var _ worker.Actions = (*Actions)(nil)
