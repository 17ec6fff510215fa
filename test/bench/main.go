// Bench measures a Remote Execution API server by the public protocol alone,
// beside the limits of the machine it runs on and beside other servers, all in
// one run: what it prints are ratios that hold on a noisy machine.
//
//	bench -remex bin/remex                             a cluster of its own
//	bench -remex bin/remex -peers other=127.0.0.1:9000 and another server beside it
//	bench -servers mine=127.0.0.1:8980                 servers that run already
//	bench -remex bin/remex -only 'trivial|AC'          some of the measurements
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"

	"github.com/remex-build/terraform-provider-remex/test/reapi"
)

// A server is one that is measured.
type server struct {
	name string
	addr string
	// pids are the processes whose CPU time and memory count; none where
	// the server was given by address alone.
	pids []int
	// dir is that of a cluster that was started here, else empty.
	dir      string
	platform *repb.Platform
	*reapi.Client
}

// A measurement prints one row for each server.
type measurement struct {
	name string
	run  func(ctx context.Context, s *server) (result, error)
	// limit names the machine's own limit that the figure is held against.
	limit string
}

// A result is a figure and what it cost.
type result struct {
	value float64
	unit  string
	note  string
	ops   int // how many operations it took, to share the CPU time among
	// ratio is the figure over the limit, in the limit's terms; 0 leaves it out.
	ratio func(limits) float64
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run() error {
	remex := flag.String("remex", "", "the remex binary; a cluster of it is started and measured")
	servers := flag.String("servers", "", "running servers: name=host:port[=pid+pid...],...")
	peers := flag.String("peers", "", "the same as -servers, for other people's")
	only := flag.String("only", "", "a regular expression; measurements whose names it matches are made")
	platform := flag.String("platform", "", "name=value,...: the platform that the servers given by address want")
	executors := flag.Int("executors", max(1, runtime.NumCPU()/2), "executors on each of the cluster's two workers")
	seconds := flag.Duration("time", 3*time.Second, "how long each rate is measured")
	flag.Parse()

	filter, err := regexp.Compile(*only)
	if err != nil {
		return fmt.Errorf("-only: %w", err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()

	var all []*server
	if *remex != "" {
		own, end, err := startCluster(ctx, *remex, *executors)
		if err != nil {
			return err
		}
		defer end()
		all = append(all, own)
	}
	others, err := parseServers(*servers, *peers)
	if err != nil {
		return err
	}
	for _, s := range others {
		s.platform = parsePlatform(*platform)
	}
	all = append(all, others...)
	if len(all) == 0 {
		return errors.New("nothing to measure: give -remex or -servers")
	}
	for _, s := range all {
		if s.Client, err = reapi.Dial(s.addr); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		defer s.Close()
	}
	return measure(ctx, all, *remex, filter, *seconds)
}

// parseServers reads name=host:port=pid+pid,...
func parseServers(lists ...string) ([]*server, error) {
	var all []*server
	for _, list := range lists {
		for part := range strings.SplitSeq(list, ",") {
			if part == "" {
				continue
			}
			f := strings.Split(part, "=")
			if len(f) < 2 || len(f) > 3 {
				return nil, fmt.Errorf("%q is not name=host:port or name=host:port=pid+pid", part)
			}
			s := &server{name: f[0], addr: strings.TrimPrefix(f[1], "grpc://")}
			if len(f) == 3 {
				for p := range strings.SplitSeq(f[2], "+") {
					pid, err := strconv.Atoi(p)
					if err != nil {
						return nil, fmt.Errorf("%q: pid %q", part, p)
					}
					s.pids = append(s.pids, pid)
				}
			}
			all = append(all, s)
		}
	}
	return all, nil
}

func parsePlatform(list string) *repb.Platform {
	if list == "" {
		return nil
	}
	p := &repb.Platform{}
	for part := range strings.SplitSeq(list, ",") {
		name, value, _ := strings.Cut(part, "=")
		p.Properties = append(p.Properties, &repb.Platform_Property{Name: name, Value: value})
	}
	return p
}

// measure makes every measurement on every server in turn, so that what
// disturbs the machine for a while disturbs them alike.
func measure(ctx context.Context, all []*server, remex string, filter *regexp.Regexp, d time.Duration) error {
	lim := measureLimits(ctx)
	lim.print()
	w := tabwriter.NewWriter(os.Stdout, 2, 8, 2, ' ', 0)
	fmt.Fprintln(w, "\nmeasurement\tserver\tfigure\tof the machine\tservers' CPU\tnote")
	if remex != "" && filter.MatchString("memory") {
		if err := measureRest(ctx, w, all[0]); err != nil {
			return err
		}
	}
	for _, m := range measurements(d) {
		if !filter.MatchString(m.name) {
			continue
		}
		for _, s := range all {
			before := cpuTime(s.pids)
			res, err := m.run(ctx, s)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				fmt.Fprintf(w, "%s\t%s\t-\t\t\t%v\n", m.name, s.name, err)
				continue
			}
			ratio, cpu := "", ""
			if res.ratio != nil {
				ratio = fmt.Sprintf("%.2f %s", res.ratio(lim), m.limit)
			}
			if len(s.pids) > 0 && res.ops > 0 {
				cpu = fmt.Sprintf("%.3f ms/op", (cpuTime(s.pids)-before).Seconds()*1000/float64(res.ops))
			}
			fmt.Fprintf(w, "%s\t%s\t%s %s\t%s\t%s\t%s\n", m.name, s.name, figure(res.value), res.unit, ratio, cpu, res.note)
		}
		w.Flush()
	}
	if remex != "" && filter.MatchString("memory") {
		if err := measureMemory(ctx, w, all[0]); err != nil {
			fmt.Fprintf(w, "memory\t%s\t-\t\t\t%v\n", all[0].name, err)
		}
	}
	if filter.MatchString("bazel") {
		if err := measureBazel(ctx, w, all); err != nil {
			fmt.Fprintf(w, "bazel\t\t-\t\t\t%v\n", err)
		}
	}
	return w.Flush()
}

func measurements(d time.Duration) []measurement {
	return slices.Concat(actionMeasurements(d), storeMeasurements(d))
}

// figure keeps three digits that say something.
func figure(v float64) string {
	switch {
	case v >= 1000:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case v >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 2, 64)
}
