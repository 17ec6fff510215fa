package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/remex-build/terraform-provider-remex/cmd/remex/internal/reapi"
)

// Exit codes. Those of `remex exec` stand in its help.
const (
	exitFailure = 1
	exitUsage   = 2
)

// exitError is an error with its exit code; an empty text is not printed.
type exitError struct {
	code int
	text string
}

func (e *exitError) Error() string { return e.text }

// usageError marks what the caller got wrong.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// run executes one command line and returns its exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	var exit *exitError
	var usage usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		if exit.text != "" {
			fmt.Fprintln(stderr, "remex: "+exit.text)
		}
		return exit.code
	}
	for line := range strings.SplitSeq(err.Error(), "\n") {
		fmt.Fprintln(stderr, "remex: "+line)
	}
	if errors.As(err, &usage) || strings.HasPrefix(err.Error(), "unknown command") {
		fmt.Fprintf(stderr, "Run `%s --help` for what there is.\n", cmd.CommandPath())
		return exitUsage
	}
	return exitFailure
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "remex",
		Short: "Remote execution and remote caching for Bazel and others",
		Long: `Remex runs the actions of Bazel, and of every other client of the Remote
Execution API, on many machines that share one cache.

A cluster is some schedulers, which clients talk to, and some workers, which run
actions and keep files. On one machine:

  remex dev                    a whole cluster: balancer, schedulers, workers
  remex bazelrc >> .bazelrc    what Bazel must be told
  remex status                 what the cluster is doing
  remex exec -- uname -a       run one command on it`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddGroup(&cobra.Group{ID: "cluster", Title: "Run a cluster:"}, &cobra.Group{ID: "client", Title: "Use a cluster:"})
	for _, c := range []*cobra.Command{newScheduler(), newWorker(), newDev()} {
		c.GroupID = "cluster"
		root.AddCommand(c)
	}
	for _, c := range []*cobra.Command{newStatus(), newBazelrc(), newExec(), newCAS()} {
		c.GroupID = "client"
		root.AddCommand(c)
	}
	root.AddCommand(&cobra.Command{
		Use: "version", Short: "Print the version", Args: args(cobra.NoArgs),
		Run: func(cmd *cobra.Command, _ []string) { fmt.Fprintln(cmd.OutOrStdout(), "remex "+version) },
	})
	return root
}

// args makes a wrong number of arguments an error of usage.
func args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usageError{fmt.Errorf("%w; usage: %s", err, cmd.UseLine())}
		}
		return nil
	}
}

const defaultCluster = "grpc://127.0.0.1:8980"

// clusterFlag adds --cluster, whose default a variable may set.
func clusterFlag(cmd *cobra.Command) *string {
	def := os.Getenv("REMEX_CLUSTER")
	if def == "" {
		def = defaultCluster
	}
	return cmd.Flags().String("cluster", def, "the cluster's address (env REMEX_CLUSTER)")
}

// target is the cluster that a client command talks to.
type target struct{ cluster, instance *string }

func targetFlags(cmd *cobra.Command) target {
	return target{
		cluster:  clusterFlag(cmd),
		instance: cmd.Flags().String("instance", os.Getenv("REMEX_INSTANCE"), "the instance name (env REMEX_INSTANCE)"),
	}
}

func (t target) dial(ctx context.Context) (*reapi.Client, error) {
	if _, err := reapi.Address(*t.cluster); err != nil {
		return nil, usageError{err}
	}
	return reapi.Dial(ctx, reapi.Options{Target: *t.cluster, Instance: *t.instance, Version: version})
}

// newLog is the log of a process that serves.
func newLog(w io.Writer, level, format string) *slog.Logger {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		l = slog.LevelInfo
	}
	o := &slog.HandlerOptions{Level: l}
	if format == "json" {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}
