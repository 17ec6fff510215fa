package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/remex-build/terraform-provider-remex/cmd/remex/internal/reapi"
	"github.com/remex-build/terraform-provider-remex/daemon/digest"
)

func newCAS() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cas",
		Short: "Store, fetch and look for files by their digest",
		Long: `Works with the content-addressable store: files named by what is in them.
A digest is written hash/size; BLAKE3's is written blake3/hash/size.`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newPut(), newGet(), newStat())
	return cmd
}

func newPut() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "put FILE...",
		Short: "Store files, and print their digests",
		Long: `Stores files and prints the digest of each, one a line, in their order. What the
cluster holds already is not sent again. The file - is standard input.`,
		Example: `  remex cas put model.bin
  tar c src | remex cas put -`,
		Args: args(cobra.MinimumNArgs(1)),
	}
	t := targetFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, files []string) error {
		ctx := reapi.NewContext(cmd.Context())
		c, err := t.dial(ctx)
		if err != nil {
			return err
		}
		defer c.Close()
		var srcs []reapi.Source
		for _, f := range files {
			if f == "-" {
				spool, err := spoolStdin(cmd.InOrStdin())
				if err != nil {
					return fmt.Errorf("read standard input: %w", err)
				}
				defer os.Remove(spool)
				f = spool
			}
			s, err := c.FromFile(f)
			if err != nil {
				return err
			}
			srcs = append(srcs, s)
		}
		if _, _, err := c.Upload(ctx, srcs); err != nil {
			return err
		}
		for _, s := range srcs {
			fmt.Fprintln(cmd.OutOrStdout(), s.Digest)
		}
		return nil
	}
	return cmd
}

// spoolStdin puts what comes into a file: it must be read twice, once for its
// name.
func spoolStdin(r io.Reader) (path string, err error) {
	f, err := os.CreateTemp("", "remex-put-")
	if err != nil {
		return "", err
	}
	_, err = io.Copy(f, r)
	if err = errors.Join(err, f.Close()); err != nil {
		_ = os.Remove(f.Name())
		return "", err
	}
	return f.Name(), nil
}

func newGet() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "get DIGEST",
		Short: "Fetch a file by its digest",
		Long: `Writes a stored file to standard output, or to the file that -o names. What is
fetched is verified; a file named by -o appears only when it is whole and right.`,
		Example: `  remex cas get e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855/0
  remex cas get -o model.bin "$(cat model.digest)"`,
		Args: args(cobra.ExactArgs(1)),
	}
	t := targetFlags(cmd)
	out := cmd.Flags().StringP("output", "o", "", "file to write to")
	cmd.RunE = func(cmd *cobra.Command, digests []string) error {
		d, err := reapi.ParseDigest(digests[0])
		if err != nil {
			return usageError{err}
		}
		ctx := reapi.NewContext(cmd.Context())
		c, err := t.dial(ctx)
		if err != nil {
			return err
		}
		defer c.Close()
		if *out == "" {
			w := bufio.NewWriter(cmd.OutOrStdout())
			return errors.Join(c.Read(ctx, d, w), w.Flush())
		}
		return getFile(ctx, c, d, *out)
	}
	return cmd
}

// getFile fetches beside the file's place, and moves it there when it is right.
func getFile(ctx context.Context, c *reapi.Client, d digest.Digest, path string) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".")
	if err != nil {
		return err
	}
	err = errors.Join(c.Read(ctx, d, f), f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

func newStat() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "stat DIGEST...",
		Short: "Say which files the cluster holds",
		Long: `Prints for each digest whether the cluster holds the file. To ask is to use: the
files live on as if they had been fetched.

Exits with 1 when one of them is missing.`,
		Example: `  remex cas stat "$(cat model.digest)"`,
		Args:    args(cobra.MinimumNArgs(1)),
	}
	t := targetFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, digests []string) error {
		var ds []digest.Digest
		for _, s := range digests {
			d, err := reapi.ParseDigest(s)
			if err != nil {
				return usageError{err}
			}
			ds = append(ds, d)
		}
		ctx := reapi.NewContext(cmd.Context())
		c, err := t.dial(ctx)
		if err != nil {
			return err
		}
		defer c.Close()
		missing, err := c.Missing(ctx, ds)
		if err != nil {
			return err
		}
		for _, d := range ds {
			state := "present"
			if slices.Contains(missing, d) {
				state = "missing"
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s %s\n", d, state)
		}
		if len(missing) > 0 {
			return &exitError{code: exitFailure}
		}
		return nil
	}
	return cmd
}
