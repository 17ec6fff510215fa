package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/remex-build/terraform-provider-remex/cmd/remex/internal/reapi"
	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
)

func newStatus() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show nodes, pools, queue and storage",
		Long: `Shows the cluster as one of its schedulers sees it at this moment. Nodes that do
not answer within 2 seconds are shown as unreachable, with the reason.`,
		Example: `  remex status
  remex status --cluster grpc://127.0.0.1:8980 -o json`,
		Args: args(cobra.NoArgs),
	}
	cluster := clusterFlag(cmd)
	format := cmd.Flags().StringP("output", "o", "table", "table or json")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *format != "table" && *format != "json" {
			return usageError{fmt.Errorf("--output %q is neither table nor json", *format)}
		}
		conn, err := reapi.Conn(reapi.Options{Target: *cluster, Version: version})
		if err != nil {
			return usageError{err}
		}
		defer conn.Close()
		ctx, cancel := context.WithTimeout(cmd.Context(), 10*time.Second)
		defer cancel()
		st, err := pb.NewAdminClient(conn).Status(ctx, &pb.StatusRequest{})
		if err != nil {
			return reapi.Explain(*cluster, err)
		}
		if *format == "json" {
			return printJSON(cmd.OutOrStdout(), st)
		}
		return printTable(cmd.OutOrStdout(), st, time.Now())
	}
	return cmd
}

// printJSON prints all fields by the names of the API, numbers of 64 bits as
// strings as JSON's numbers cannot hold them.
func printJSON(w io.Writer, st *pb.StatusResponse) error {
	b, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(st)
	if err != nil {
		return err
	}
	var indented bytes.Buffer
	if err := json.Indent(&indented, b, "", "  "); err != nil {
		return err
	}
	indented.WriteByte('\n')
	_, err = w.Write(indented.Bytes())
	return err
}

func printTable(w io.Writer, st *pb.StatusResponse, now time.Time) error {
	fmt.Fprintf(w, "Answered by %s, version %s\n\n", st.AnsweredBy, st.Version)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NODE\tROLE\tPOOL\tZONE\tSTATE\tRUNNING\tDISK\tBLOBS\tADDRESS\tUP")
	for _, n := range st.Nodes {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n",
			n.Name, n.Role, dash(n.Pool), dash(n.Zone), state(n), running(n), disk(n), blobs(n), n.Address,
			now.Sub(time.UnixMilli(n.StartedUnixMs)).Truncate(time.Second))
	}
	if len(st.Pools) > 0 {
		fmt.Fprintln(t, "\nPOOL\tWORKERS\tRUNNING\tEXECUTORS")
		for _, p := range st.Pools {
			fmt.Fprintf(t, "%s\t%d\t%d\t%d\n", p.Name, p.Workers, p.Running, p.Executors)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	q, s := st.GetQueue(), st.GetStorage()
	fmt.Fprintf(w, "\nQueue:         %d waiting, %d running", q.GetQueued(), q.GetExecuting())
	if q.GetQueued() > 0 {
		fmt.Fprintf(w, "; the first has waited %s", (time.Duration(q.GetOldestQueuedMs()) * time.Millisecond).Round(100*time.Millisecond))
	}
	fmt.Fprintf(w, "\nStorage:       %s used of %s on %d disks; %d blobs, every copy counted; %d copies of each\n",
		bytesText(s.GetUsed()), bytesText(s.GetCapacity()), s.GetDisks(), s.GetBlobs(), s.GetReplicas())
	fmt.Fprintf(w, "Copies:        %s\n", copies(s))
	var entries, size int64
	for _, n := range st.Nodes {
		entries, size = entries+n.ActionCacheEntries, size+n.ActionCacheBytes
	}
	fmt.Fprintf(w, "Action cache:  %d entries in memory (%s), every copy counted\n", entries, bytesText(size))
	for _, n := range st.Nodes {
		if !n.Reachable {
			fmt.Fprintf(w, "\n%s cannot be reached: %s\n", n.Name, n.Problem)
		}
	}
	return nil
}

// copies says whether each blob is where it belongs.
func copies(s *pb.StorageStatus) string {
	var parts []string
	if n := s.GetRepairBlobs(); n > 0 {
		parts = append(parts, fmt.Sprintf("%d to be made (%s), the first for %s", n, bytesText(s.GetRepairBytes()),
			(time.Duration(s.GetRepairLagMs())*time.Millisecond).Round(time.Second)))
	}
	if n := s.GetForeignBlobs(); n > 0 {
		parts = append(parts, fmt.Sprintf("%d kept until their owners have theirs", n))
	}
	if n := s.GetUnsettledDisks(); n > 0 {
		parts = append(parts, fmt.Sprintf("%d disks are learning what the others have", n))
	}
	if len(parts) == 0 {
		return "all where they belong"
	}
	return strings.Join(parts, "; ")
}

func dash(s string) string { return cmp.Or(s, "-") }

func state(n *pb.NodeStatus) string {
	switch {
	case !n.Reachable:
		return "unreachable"
	case n.DiskFull:
		return n.State + ", disk full"
	case n.DiskLoading:
		return n.State + ", reading its disk"
	}
	return n.State
}

func running(n *pb.NodeStatus) string {
	if !n.Reachable || n.Role != "worker" {
		return "-"
	}
	return fmt.Sprintf("%d/%d", n.Running, n.Executors)
}

func disk(n *pb.NodeStatus) string {
	if !n.Reachable || n.DiskCapacity == 0 {
		return "-"
	}
	return fmt.Sprintf("%s/%s", bytesText(n.DiskUsed), bytesText(n.DiskCapacity))
}

func blobs(n *pb.NodeStatus) string {
	if !n.Reachable || n.DiskCapacity == 0 {
		return "-"
	}
	return fmt.Sprint(n.Blobs)
}
