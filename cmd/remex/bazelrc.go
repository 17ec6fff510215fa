package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/remex-build/terraform-provider-remex/cmd/remex/internal/reapi"
)

func newBazelrc() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bazelrc",
		Short: "Print what Bazel must be told, for a .bazelrc",
		Long: `Prints flags for a .bazelrc, each with the reason for it. All of them are known
to Bazel from 4.2 on. Nothing is asked of the cluster.`,
		Example: `  remex bazelrc >> .bazelrc
  bazel build --config=remex //...`,
		Args: args(cobra.NoArgs),
	}
	t := targetFlags(cmd)
	jobs := cmd.Flags().Int("jobs", 64, "actions that Bazel has under way at a time; about twice the cluster's executors")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		addr, err := reapi.Address(*t.cluster)
		if err != nil {
			return usageError{err}
		}
		if *jobs < 1 {
			return usageError{fmt.Errorf("--jobs %d: Bazel needs at least one", *jobs)}
		}
		out := cmd.OutOrStdout()
		fmt.Fprintf(out, bazelrc, "grpc://"+addr, *jobs)
		if *t.instance != "" {
			fmt.Fprintf(out, "\n# The instance: its action cache is apart from those of others.\nbuild:remex --remote_instance_name=%s\n", rcQuote(*t.instance))
		}
		return nil
	}
	return cmd
}

// rcQuote is s as one word of a .bazelrc.
func rcQuote(s string) string {
	if !strings.ContainsAny(s, " \t'\"\\#") {
		return s
	}
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s) + "'"
}

const bazelrc = `# Remex: build with --config=remex.

# Where actions run, and where their results are looked up first.
build:remex --remote_executor=%s

# How many actions are under way at a time. They wait at the cluster and not
# here, so this may be more than the cluster has executors.
build:remex --jobs=%d

# How long one call may take. The default of 60 s is short for a large file on a
# slow line; how long an action may take is another matter.
build:remex --remote_timeout=600s

# Notice within a minute when a connection is dead, and keep those that are idle
# from being dropped on the way.
build:remex --grpc_keepalive_time=30s
build:remex --grpc_keepalive_timeout=20s

# Follow running actions through lost connections instead of starting them anew.
build:remex --experimental_remote_execution_keepalive

# The same environment for everyone: without it your PATH is part of what names
# a result, and nobody else finds it in the cache.
build:remex --incompatible_strict_action_env

# Fetch only the files that you asked for, not everything in between. Saves most
# of the traffic; take it out if tools look into bazel-out.
build:remex --remote_download_toplevel
`
