package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"

	"github.com/remex-build/terraform-provider-remex/cmd/remex/internal/reapi"
	"github.com/remex-build/terraform-provider-remex/daemon/config"
)

// Exit codes of remex exec beside the command's own, as of env and timeout.
const (
	exitTimeout   = 124
	exitNotRun    = 125
	exitInterrupt = 130
)

type execFlags struct {
	target
	inputs, outputs, platform, env []string
	dir, workDir                   string
	timeout                        time.Duration
	noCache, quiet                 bool
}

func newExec() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "exec [flags] -- COMMAND [ARG...]",
		Short: "Run one command on the cluster",
		Long: `Runs a command on a worker: uploads its inputs, waits, prints its stdout and
stderr, and fetches its outputs. The command sees its inputs and nothing else of
this machine, and has the environment that --env names and no other.

What it does on the way goes to stderr, in lines that begin with "remex:".

Exits with the command's own code, or with 124 when it ran out of time, 125 when
it could not be run or an output is missing, 130 when it was interrupted here.`,
		Example: `  remex exec -- uname -a
  remex exec --input main.c --output main -- /usr/bin/gcc -o main main.c
  remex exec --input src --input ../data=data --env LANG=C --timeout 5m -- src/test.sh
  remex exec --platform OSFamily=Linux --no-cache -- sleep 5`,
		Args: args(func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return errors.New("there is no command to run: remex exec [flags] -- COMMAND [ARG...]")
			}
			return nil
		}),
	}
	x := &execFlags{target: targetFlags(cmd)}
	f := cmd.Flags()
	f.SetInterspersed(false) // the command's own flags are its own, even without --
	f.StringArrayVar(&x.inputs, "input", nil, "file or directory that the command needs: PATH, or PATH=REMOTE PATH (may be repeated)")
	f.StringArrayVar(&x.outputs, "output", nil, "file or directory that the command makes (may be repeated)")
	f.StringVar(&x.dir, "output-dir", ".", "where outputs are put, by the paths that they have there")
	f.StringArrayVar(&x.platform, "platform", nil, "property that the worker must have: NAME=VALUE (may be repeated)")
	f.StringArrayVar(&x.env, "env", nil, "environment variable: NAME=VALUE (may be repeated)")
	f.StringVar(&x.workDir, "workdir", "", "directory below the input root to run in")
	f.DurationVar(&x.timeout, "timeout", 0, "how long it may run (default: what the cluster allows)")
	f.BoolVar(&x.noCache, "no-cache", false, "run it even if the result is known, and do not remember the result")
	f.BoolVarP(&x.quiet, "quiet", "q", false, "print only what the command prints")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		err := x.run(cmd.Context(), args, cmd.OutOrStdout(), cmd.ErrOrStderr())
		var exit *exitError
		var usage usageError
		switch {
		case err == nil, errors.As(err, &exit), errors.As(err, &usage):
			return err
		case cmd.Context().Err() != nil:
			return &exitError{code: exitInterrupt, text: "interrupted: " + err.Error()}
		}
		return &exitError{code: exitNotRun, text: err.Error()}
	}
	return cmd
}

// command checks the flags and makes a command of them.
func (x *execFlags) command(args []string) (cmd reapi.Command, inputs []reapi.Input, err error) {
	cmd = reapi.Command{
		Args: args, Env: map[string]string{}, Outputs: x.outputs, WorkDir: x.workDir,
		Timeout: x.timeout, NoCache: x.noCache,
	}
	var errs []error
	for _, s := range x.inputs {
		in, err := reapi.ParseInput(s)
		errs = append(errs, err)
		inputs = append(inputs, in)
	}
	for _, s := range x.env {
		k, v, ok := strings.Cut(s, "=")
		if !ok || k == "" {
			errs = append(errs, fmt.Errorf("--env %q: write NAME=VALUE", s))
		}
		cmd.Env[k] = v
	}
	for _, s := range x.platform {
		k, v, ok := strings.Cut(s, "=")
		if !ok || k == "" {
			errs = append(errs, fmt.Errorf("--platform %q: write NAME=VALUE", s))
		}
		cmd.Platform = append(cmd.Platform, [2]string{k, v})
	}
	for i, s := range x.outputs {
		x.outputs[i] = path.Clean(s)
		if path.IsAbs(s) || x.outputs[i] == ".." || strings.HasPrefix(x.outputs[i], "../") {
			errs = append(errs, fmt.Errorf("--output %q: write a path below the input root", s))
		}
	}
	if x.timeout < 0 {
		errs = append(errs, fmt.Errorf("--timeout %s is negative", x.timeout))
	}
	return cmd, inputs, errors.Join(errs...)
}

func (x *execFlags) run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	command, inputs, err := x.command(args)
	if err != nil {
		return usageError{err}
	}
	say := func(format string, args ...any) {
		if !x.quiet {
			fmt.Fprintf(stderr, "remex: "+format+"\n", args...)
		}
	}
	ctx = reapi.NewContext(ctx)
	c, err := x.dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	tree, err := c.BuildTree(ctx, inputs)
	if err != nil {
		return err
	}
	command.Input = tree.Root
	action, blobs, err := c.Prepare(command)
	if err != nil {
		return err
	}
	n, size, err := c.Upload(ctx, append(tree.Sources, blobs...))
	if err != nil {
		return err
	}
	say("action %s: %d input files; uploaded %d blobs (%s)", action, tree.Files, n, bytesText(size))
	began := time.Now()
	resp, err := c.Execute(ctx, action, x.noCache, teller(say))
	if err != nil {
		return err
	}
	return x.finish(ctx, c, resp, time.Since(began), say, stdout, stderr)
}

// teller says each stage and worker once.
func teller(say func(string, ...any)) func(reapi.Progress) {
	var last reapi.Progress
	return func(p reapi.Progress) {
		if p == last {
			return
		}
		last = p
		switch p.Stage {
		case repb.ExecutionStage_QUEUED:
			say("waiting for a worker")
		case repb.ExecutionStage_EXECUTING:
			if p.Worker == "" {
				say("running")
			} else {
				say("running on %s", p.Worker)
			}
		}
	}
}

// finish passes on what the command left: its texts, its outputs, its code.
func (x *execFlags) finish(ctx context.Context, c *reapi.Client, resp *repb.ExecuteResponse, took time.Duration, say func(string, ...any), stdout, stderr io.Writer) error {
	failure, r := reapi.Failure(resp), resp.Result
	if r != nil {
		if err := errors.Join(
			c.Copy(ctx, r.StdoutRaw, r.StdoutDigest, stdout),
			c.Copy(ctx, r.StderrRaw, r.StderrDigest, stderr),
		); err != nil {
			return err
		}
	}
	if failure != nil && codes.Code(resp.Status.Code) == codes.DeadlineExceeded {
		return &exitError{code: exitTimeout, text: "the command ran out of time (" + failure.Error() + ")"}
	}
	if failure != nil {
		return fmt.Errorf("the command was not run: %w", failure)
	}
	if r == nil {
		return errors.New("the server sent no result")
	}
	how := "ran on " + r.GetExecutionMetadata().GetWorker()
	if resp.CachedResult {
		how = "found in the cache"
	}
	if err := os.MkdirAll(x.dir, 0o777); err != nil {
		return err
	}
	root, err := os.OpenRoot(x.dir)
	if err != nil {
		return err
	}
	defer root.Close()
	absent, err := c.Fetch(ctx, r, x.outputs, root)
	if err != nil {
		return err
	}
	say("%s, exit code %d, %s, %d outputs", how, r.ExitCode, took.Round(time.Millisecond), len(x.outputs)-len(absent))
	switch {
	case r.ExitCode != 0:
		return &exitError{code: int(r.ExitCode)}
	case len(absent) > 0:
		return fmt.Errorf("the command did not make %s", strings.Join(absent, ", "))
	}
	return nil
}

// bytesText is a size for people: three digits and a unit.
func bytesText(n int64) string {
	for _, u := range []struct {
		name string
		size config.ByteSize
	}{{"TiB", config.TiB}, {"GiB", config.GiB}, {"MiB", config.MiB}, {"KiB", config.KiB}} {
		if n >= int64(u.size)/1024*1000 { // from there on the smaller unit needs four digits
			return fmt.Sprintf("%.3g%s", float64(n)/float64(u.size), u.name)
		}
	}
	return fmt.Sprintf("%dB", n)
}
