// Package layers holds the daemon's packages to the order in which they may
// know each other: arrows point down only, and each forbidden one has a reason.
package layers

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const daemon = "github.com/remex-build/terraform-provider-remex/daemon/"

// floors lists the packages from the ground up. A package and what lies below it
// may import their own floor's earlier entries and everything on lower floors.
var floors = [][]string{
	{"proto", "digest", "config", "rpc", "cloud", "cluster"},
	{"blob"},
	{"actioncache"},
	{"scheduler", "sandbox", "worker", "auth"},
	{"frontend", "admin"},
	{"node", "dev"},
}

// forbidden are arrows that the floors would allow.
var forbidden = map[string]map[string]string{
	"scheduler": {
		"blob/disk": "schedulers hold no blobs",
		"worker":    "the two know each other by messages alone",
		"sandbox":   "schedulers run nothing",
	},
	"worker":   {"scheduler": "the two know each other by messages alone (scheduler/wire)"},
	"frontend": {"blob/disk": "schedulers hold no blobs", "worker": "clients' services don't know who runs their actions"},
	"dev":      {"node": "it starts processes, and knows them by their flags"},
}

type pkg struct {
	ImportPath string
	Imports    []string
}

func TestArrowsPointDown(t *testing.T) {
	for _, p := range list(t) {
		from, ok := strings.CutPrefix(p.ImportPath, daemon)
		if !ok {
			continue
		}
		for _, imp := range p.Imports {
			to, ok := strings.CutPrefix(imp, daemon)
			if !ok || room(to) == room(from) {
				continue
			}
			if floor(t, to) > floor(t, from) {
				t.Errorf("%s imports %s, which lies above it", from, to)
			}
			for bad, why := range forbidden[room(from)] {
				if to != "scheduler/wire" && (to == bad || strings.HasPrefix(to, bad+"/")) {
					t.Errorf("%s imports %s: %s", from, to, why)
				}
			}
		}
	}
}

// Protobuf messages of REAPI are taken apart at the edges only; everything
// between passes them on as bytes.
func TestREAPIStaysAtTheEdges(t *testing.T) {
	allowed := []string{"frontend", "worker/action"}
	for _, p := range list(t) {
		from, ok := strings.CutPrefix(p.ImportPath, daemon)
		if !ok || slices.ContainsFunc(allowed, func(a string) bool { return from == a || strings.HasPrefix(from, a+"/") }) {
			continue
		}
		for _, imp := range p.Imports {
			if strings.HasPrefix(imp, "github.com/bazelbuild/remote-apis/") {
				t.Errorf("%s imports %s", from, imp)
			}
		}
	}
}

func TestTheDaemonDoesNotLinkTheProvider(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "../../cmd/remex").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "/terraform-plugin-") || strings.Contains(line, "remex/provider") {
			t.Errorf("cmd/remex links %s", strings.TrimSpace(line))
		}
	}
}

func room(path string) string {
	first, _, _ := strings.Cut(path, "/")
	return first
}

func floor(t *testing.T, path string) int {
	for i, rooms := range floors {
		if slices.Contains(rooms, room(path)) {
			return i
		}
	}
	t.Fatalf("daemon/%s stands on no floor: give it one in floors", path)
	return 0
}

func list(t *testing.T) []pkg {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports", "../../daemon/...").Output()
	if err != nil {
		t.Fatal(err)
	}
	var all []pkg
	dec := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p pkg
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}
