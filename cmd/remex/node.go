package main

import (
	"errors"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/remex-build/terraform-provider-remex/daemon/config"
	"github.com/remex-build/terraform-provider-remex/daemon/node"
)

const settingsHelp = `
Every setting has one name in three spellings: the flag --stream-budget, the
variable REMEX_STREAM_BUDGET and the key stream-budget in the YAML file that
--config names. A flag goes before the variable, that before the file. Settings
that are unknown, contradict each other or belong to another role are refused.`

func newScheduler() *cobra.Command {
	c := config.DefaultScheduler()
	cmd := &cobra.Command{
		Use:   "scheduler",
		Short: "Run a scheduler: it serves clients and gives actions to workers",
		Long: `Runs a scheduler. Clients talk to any of them: they serve the Remote Execution
API, hold the action cache in memory, and give actions to workers. They keep no
files: the workers do.
` + settingsHelp,
		Example: `  remex scheduler --seeds 127.0.0.2:8982
  remex scheduler --config /etc/remex/scheduler.yaml

  # scheduler.yaml
  name: scheduler-1
  seeds: [127.0.0.2:8982, 127.0.0.3:8982]
  action-cache-size: 4GiB`,
		Args: args(cobra.NoArgs),
	}
	l := c.Flags(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := l.Load(os.Environ()); err != nil {
			return usageError{err}
		}
		return node.RunScheduler(cmd.Context(), c, version, newLog(cmd.ErrOrStderr(), c.LogLevel, c.LogFormat))
	}
	explainFlags(cmd, l)
	return cmd
}

func newWorker() *cobra.Command {
	c := config.DefaultWorker()
	cmd := &cobra.Command{
		Use:   "worker",
		Short: "Run a worker: it runs actions and keeps files",
		Long: `Runs a worker. It runs actions, as many at a time as it has executors, and keeps
its share of the cluster's files on its disk. Several like workers are a pool;
with --executors 0 a worker only stores.

Run as root, it gives each action a user of its own (--action-uid-base), so that
no action can touch another's files or the stored ones.
` + settingsHelp,
		Example: `  remex worker --seeds 127.0.0.2:8982 --disk-size 200GiB
  remex worker --config /etc/remex/worker.yaml

  # worker.yaml
  name: worker-1
  pool: large
  seeds: [127.0.0.2:8982]
  disk-size: 200GiB
  properties:
    OSFamily: Linux
    ISA: [x86-64, x86-64-avx2]`,
		Args: args(cobra.NoArgs),
	}
	l := c.Flags(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := l.Load(os.Environ()); err != nil {
			return usageError{err}
		}
		return node.RunWorker(cmd.Context(), c, version, newLog(cmd.ErrOrStderr(), c.LogLevel, c.LogFormat))
	}
	explainFlags(cmd, l)
	return cmd
}

// explainFlags says of an unknown flag whether it is another role's, or which
// one may have been meant.
func explainFlags(cmd *cobra.Command, l *config.Loader) {
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		if name, ok := strings.CutPrefix(err.Error(), "unknown flag: --"); ok {
			return usageError{errors.New("--" + name + ": " + l.Unknown(name))}
		}
		return usageError{err}
	})
}
