// Command remex is the daemon and the command line of Remex: remote execution
// and remote caching for Bazel and every other client of the Remote Execution
// API. See `remex --help`.
package main

import (
	"context"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"

	"github.com/remex-build/terraform-provider-remex/daemon/sandbox"
)

// version is stamped by the linker: -ldflags "-X main.version=...".
var version = "dev"

func main() {
	if len(os.Args) > 1 && os.Args[1] == "runner" {
		sandbox.RunnerMain() // a worker's helper, of which there are many: nothing else is set up
		return
	}
	ctx, _ := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	// The first signal stops in order, and a second Ctrl-C ends the process at
	// once. One soon after the first is the same Ctrl-C, told by a wrapper too.
	context.AfterFunc(ctx, func() {
		time.AfterFunc(time.Second, func() { signal.Reset(os.Interrupt) })
	})
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
