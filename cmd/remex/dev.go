package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/remex-build/terraform-provider-remex/daemon/config"
	"github.com/remex-build/terraform-provider-remex/daemon/dev"
)

func newDev() *cobra.Command {
	o := dev.Options{}
	var disk, level string
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run a whole cluster on this machine",
		Long: `Runs a cluster as separate processes on loopback addresses: a balancer on
--listen, schedulers and workers. It says when the cluster is ready, and what to
tell Bazel.

A node that crashes, or that you kill, is started again. Ctrl-C stops
everything; files and cache entries stay in --dir for the next time.
DIR/cluster.json names the nodes, their processes and their addresses;
DIR/logs holds what they print.

Several clusters run side by side with --listen 127.0.0.1:0 and a --dir each.`,
		Example: `  remex dev
  remex dev --listen 127.0.0.1:0 --dir /tmp/remex --workers 5 --replicas 3
  remex dev --worker-flag=--min-age=10m --scheduler-flag=--log-level=debug`,
		Args: args(cobra.NoArgs),
	}
	f := cmd.Flags()
	f.StringVar(&o.Listen, "listen", "127.0.0.1:8980", "where clients connect; port 0 picks one")
	f.StringVar(&o.Dir, "dir", devDir(), "directory of data and logs, kept between runs")
	f.IntVar(&o.Schedulers, "schedulers", 2, "how many schedulers")
	f.IntVar(&o.Workers, "workers", 3, "how many workers")
	f.IntVar(&o.Executors, "executors", 0, "actions at a time on each worker (default: the processors, shared out)")
	f.IntVar(&o.Replicas, "replicas", 2, "on how many workers each file is; no more than there are")
	f.StringVar(&disk, "disk-size", "10GiB", "bytes of files that each worker keeps")
	f.BoolVar(&o.Restart, "restart", true, "start nodes again that end by themselves")
	f.StringArrayVar(&o.SchedulerFlags, "scheduler-flag", nil, "one more flag for every scheduler (may be repeated)")
	f.StringArrayVar(&o.WorkerFlags, "worker-flag", nil, "one more flag for every worker (may be repeated)")
	f.StringVar(&level, "log-level", "info", "of this process: debug, info, warn or error")
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		size, err := config.ParseByteSize(disk)
		if err != nil {
			return usageError{fmt.Errorf("--disk-size: %w", err)}
		}
		if err := new(slog.Level).UnmarshalText([]byte(level)); err != nil {
			return usageError{fmt.Errorf("--log-level: %q is neither debug, info, warn nor error", level)}
		}
		o.DiskSize = size
		if !f.Changed("executors") {
			o.Executors = max(1, (runtime.NumCPU()+o.Workers-1)/max(1, o.Workers))
		}
		if !f.Changed("replicas") {
			o.Replicas = min(o.Replicas, max(1, o.Workers))
		}
		if o.Exe, err = os.Executable(); err != nil {
			return err
		}
		o.Out, o.Log = cmd.OutOrStdout(), newLog(cmd.ErrOrStderr(), level, "text")
		if err := errors.Join(o.Validate(), nodeFlags("scheduler", o.SchedulerFlags), nodeFlags("worker", o.WorkerFlags)); err != nil {
			return usageError{err}
		}
		return dev.Run(cmd.Context(), o)
	}
	return cmd
}

// nodeFlags says what is wrong with further flags of a role's nodes, which they
// would say themselves once they are started.
func nodeFlags(role string, args []string) error {
	f := pflag.NewFlagSet(role, pflag.ContinueOnError)
	var l *config.Loader
	if role == "scheduler" {
		c := config.DefaultScheduler()
		l = c.Flags(f)
	} else {
		c := config.DefaultWorker()
		l = c.Flags(f)
	}
	err := f.Parse(args)
	if name, ok := strings.CutPrefix(fmt.Sprint(err), "unknown flag: --"); ok {
		err = errors.New("--" + name + ": " + l.Unknown(name))
	}
	if err == nil {
		err = l.Load(nil)
	}
	if err != nil {
		return fmt.Errorf("--%s-flag: %w", role, err)
	}
	return nil
}

// devDir is where a cluster's data go unless told otherwise.
func devDir() string {
	if os.Geteuid() == 0 {
		return "/var/lib/remex-dev"
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return filepath.Join(os.TempDir(), "remex-dev")
	}
	return filepath.Join(cache, "remex", "dev")
}
