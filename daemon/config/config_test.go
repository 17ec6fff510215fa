package config

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
	"pgregory.net/rapid"
)

// load reads a worker's settings from a file's text, environment and flags.
func load(t *testing.T, file string, env []string, args ...string) (Worker, error) {
	t.Helper()
	c := DefaultWorker()
	fs := pflag.NewFlagSet("worker", pflag.ContinueOnError)
	l := c.Flags(fs)
	if file != "" {
		path := filepath.Join(t.TempDir(), "remex.yaml")
		if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append([]string{"--config", path}, args...)
	}
	if err := fs.Parse(args); err != nil {
		t.Fatal(err)
	}
	return c, l.Load(env)
}

func TestDefaultsAreValid(t *testing.T) {
	if err := DefaultWorker().Validate(); err != nil {
		t.Error(err)
	}
	if err := DefaultScheduler().Validate(); err != nil {
		t.Error(err)
	}
}

func TestFlagGoesBeforeVariableBeforeFileBeforeDefault(t *testing.T) {
	file := "name: file\npool: file\nzone: file\n"
	env := []string{"REMEX_NAME=env", "REMEX_POOL=env", "PATH=/bin"}
	c, err := load(t, file, env, "--name=flag")
	if err != nil {
		t.Fatal(err)
	}
	got := []string{c.Name, c.Pool, c.Zone, c.ClusterName}
	if diff := cmp.Diff([]string{"flag", "env", "file", "remex"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestEverySettingReadsBackFromAllSpellings(t *testing.T) {
	for _, role := range []struct {
		name string
		// settings of a fresh configuration, and its loader
		open func(fs *pflag.FlagSet) ([]setting, *Loader)
	}{
		{"worker", func(fs *pflag.FlagSet) ([]setting, *Loader) {
			c := DefaultWorker()
			return c.settings(), c.Flags(fs)
		}},
		{"scheduler", func(fs *pflag.FlagSet) ([]setting, *Loader) {
			c := DefaultScheduler()
			return c.settings(), c.Flags(fs)
		}},
	} {
		defaults, _ := role.open(pflag.NewFlagSet("", pflag.ContinueOnError))
		var env, args []string
		for _, s := range defaults {
			env = append(env, s.env()+"="+s.show())
			args = append(args, s.flag()+"="+s.show())
		}
		for source, in := range map[string]struct{ env, args []string }{"environment": {env: env}, "flags": {args: args}} {
			t.Run(role.name+"/"+source, func(t *testing.T) {
				fs := pflag.NewFlagSet("", pflag.ContinueOnError)
				settings, l := role.open(fs)
				if err := fs.Parse(in.args); err != nil {
					t.Fatal(err)
				}
				if err := l.Load(in.env); err != nil {
					t.Fatal(err)
				}
				for i, s := range settings {
					if s.show() != defaults[i].show() {
						t.Errorf("%s: %q became %q", s.name, defaults[i].show(), s.show())
					}
				}
			})
		}
	}
}

func TestYAMLReadsEveryShape(t *testing.T) {
	c, err := load(t, `
# a worker
disk-size: 100GiB
disk-reserve: 1048576
min-age: 4h
executors: 8
seeds: ["127.0.0.1:8982", localhost:9982]
properties:
  OSFamily: Linux
  ISA: [x86-64, "x86-64-avx2"]
`, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := DefaultWorker()
	want.DiskSize, want.DiskReserve, want.MinAge, want.Executors = 100*GiB, MiB, 4*time.Hour, 8
	want.Seeds = []string{"127.0.0.1:8982", "localhost:9982"}
	want.Properties = map[string][]string{"OSFamily": {"Linux"}, "ISA": {"x86-64", "x86-64-avx2"}}
	if diff := cmp.Diff(want, c); diff != "" {
		t.Error(diff)
	}
}

func TestListsComeFromFlagsAndVariables(t *testing.T) {
	c, err := load(t, "seeds: [127.0.0.9:1]\n", []string{"REMEX_PROPERTIES=a=1,a=2, b=x=y"}, "--seeds=127.0.0.1:1,127.0.0.2:1", "--seeds", "127.0.0.3:1")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"127.0.0.1:1", "127.0.0.2:1", "127.0.0.3:1"}, c.Seeds); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(map[string][]string{"a": {"1", "2"}, "b": {"x=y"}}, c.Properties); diff != "" {
		t.Error(diff)
	}
}

func TestBadSettingsAreRefusedWithTheirPlace(t *testing.T) {
	tests := []struct {
		name string
		file string
		env  []string
		args []string
		want string
	}{
		{name: "unknown key", file: "name: a\ndisk-sise: 1GiB\n", want: `remex.yaml:2: no setting is called "disk-sise"; did you mean disk-size?`},
		{name: "key twice", file: "name: a\nzone: b\nname: c\n", want: "remex.yaml:3: name is set on line 1 already"},
		{name: "key of the other role", file: "\nmax-queue: 5\n", want: "remex.yaml:2: max-queue is a setting of a scheduler, and this is a worker"},
		{name: "list for text", file: "name: [a]\n", want: "remex.yaml:1: name wants text"},
		{name: "number for text", file: "name: 12\n", want: "remex.yaml:1: name wants text"},
		{name: "text for number", file: "executors: \"4\"\n", want: "remex.yaml:1: executors wants a whole number"},
		{name: "number for duration", file: "min-age: 5\n", want: "remex.yaml:1: min-age wants a duration such as 90s or 3h"},
		{name: "null", file: "name:\n", want: "remex.yaml:1: name wants text"},
		{name: "map in a list", file: "seeds:\n- a: b\n", want: "remex.yaml:2: seeds wants a list of texts"},
		{name: "bad value", file: "disk-size: 10G\n", want: `remex.yaml:1: disk-size: size "10G" has no known unit`},
		{name: "no mapping", file: "- a\n", want: "remex.yaml:1: settings are written as `name: value`"},
		{name: "syntax", file: "name: a\n\tpool: b\n", want: "remex.yaml:2: "},
		{name: "second document", file: "name: a\n---\nname: b\n", want: "more than one YAML document"},
		{name: "alias", file: "name: &x a\npool: *x\n", want: "remex.yaml:2: pool wants text"},
		{name: "no such file", args: []string{"--config=/nonexistent/x.yaml"}, want: "--config: open /nonexistent/x.yaml: no such file"},
		{name: "no such file, by variable", env: []string{"REMEX_CONFIG=/nonexistent/x.yaml"}, want: "/nonexistent/x.yaml: no such file"},
		{name: "unknown variable", env: []string{"REMEX_DISKSIZE=1GiB"}, want: `REMEX_DISKSIZE: no setting is called "disksize"; did you mean disk-size?`},
		{name: "variable of the other role", env: []string{"REMEX_MAX_QUEUE=1"}, want: "REMEX_MAX_QUEUE: max-queue is a setting of a scheduler"},
		{name: "bad variable", env: []string{"REMEX_EXECUTORS=many"}, want: `REMEX_EXECUTORS: "many" is no whole number`},
		{name: "bad flag", args: []string{"--min-age=5"}, want: `--min-age: "5" is no duration`},
		{name: "property without value", args: []string{"--properties=a"}, want: `--properties: "a" is no property`},
		{name: "not loopback", args: []string{"--listen-cluster=10.0.0.1:8981"}, want: "--listen-cluster: 10.0.0.1:8981 is not a loopback address: TLS is not available yet"},
		{name: "every address", args: []string{"--listen-ops=:8983"}, want: "TLS is not available yet"},
		{name: "same address", args: []string{"--listen-ops=127.0.0.1:1", "--listen-gossip=127.0.0.1:1"}, want: "both are 127.0.0.1:1"},
		{name: "contradiction", file: "write-acks: 3\n", env: []string{"REMEX_REPLICAS=2"}, want: "remex.yaml:1: write-acks, REMEX_REPLICAS: 3 acknowledgements cannot come from 2 replicas"},
		{name: "journal above disk", args: []string{"--disk-size=100MiB", "--journal-size=256MiB"}, want: "--journal-size, --disk-size: a journal of 256MiB leaves nothing of a disk of 100MiB"},
		{name: "small budget", args: []string{"--stream-budget=64MiB"}, want: "--stream-budget: 64MiB is less than 256MiB"},
		{name: "discovery", args: []string{"--discovery=dns"}, want: "this version knows only static"},
		{name: "percent signs", env: []string{"REMEX_%d=1"}, want: "REMEX_%d: no setting"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := load(t, tt.file, tt.env, tt.args...)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got error %v, want one with %q", err, tt.want)
			}
		})
	}
}

func TestEmptyPools(t *testing.T) {
	host := hostProperties(runtime.GOARCH)
	for _, tt := range []struct {
		text string
		want map[string][]string // nil: refused
	}{
		{"gpu", host},
		{"gpu:gpu=a100;gpu=h100;OSFamily=Linux", map[string][]string{"gpu": {"a100", "h100"}, "OSFamily": {"Linux"}}},
		{"", nil},
		{"a b", nil},
		{"gpu:", nil},
		{"gpu:a100", nil},
	} {
		name, props, err := ParsePool(tt.text)
		if tt.want == nil {
			if err == nil {
				t.Errorf("%q is read as %q, %v", tt.text, name, props)
			}
			c := DefaultScheduler()
			c.EmptyPools = []string{tt.text}
			if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "empty-pools: ") {
				t.Errorf("%q is valid: %v", tt.text, err)
			}
			continue
		}
		if err != nil || name != "gpu" || !cmp.Equal(props, tt.want) {
			t.Errorf("%q is read as %q, %v, %v", tt.text, name, props, err)
		}
	}
	c := DefaultScheduler()
	c.RequestProperties, c.ResourceProperties = []string{"x", "y"}, []string{"y"}
	if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "resource-properties, request-properties: ") {
		t.Errorf("a property that is two things is valid: %v", err)
	}
}

func TestWindowsLeaveRoom(t *testing.T) {
	for window, want := range map[ByteSize]string{
		32 * KiB:  "stream-window: 32KiB is not between 64KiB and 16MiB",
		128 * KiB: "",
		2 * MiB:   "",
		4 * MiB:   "stream-window, stream-budget: windows of 4MiB leave a stream budget of 512MiB too few uploads",
	} {
		c := DefaultScheduler()
		c.StreamWindow = window
		err := c.Validate()
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v", window, err)
		}
	}
}

func TestAllProblemsAreReportedAtOnce(t *testing.T) {
	_, err := load(t, "nme: a\nexecutors: x\n", []string{"REMEX_POL=a"}, "--dead-after=soon")
	for _, want := range []string{"remex.yaml:1: ", "remex.yaml:2: ", "REMEX_POL: ", "--dead-after: "} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in: %v", want, err)
		}
	}
	_, err = load(t, "", nil, "--replicas=0", "--log-level=loud", "--name=a b")
	if n := strings.Count(err.Error(), "\n") + 1; n != 3 {
		t.Errorf("%d problems instead of 3: %v", n, err)
	}
}

func TestVariablesOfClientsAreNotSettings(t *testing.T) {
	c, err := load(t, "", []string{"REMEX_CLUSTER=grpc://127.0.0.1:8980"})
	if err != nil || c.ClusterName != "remex" {
		t.Errorf("cluster name %q, error %v", c.ClusterName, err)
	}
}

func TestEmptyFileSetsNothing(t *testing.T) {
	for _, file := range []string{"\n", "# nothing\n", "---\n", "{}\n"} {
		c, err := load(t, file, nil)
		if err != nil {
			t.Errorf("%q: %v", file, err)
		}
		if diff := cmp.Diff(DefaultWorker(), c); diff != "" {
			t.Errorf("%q: %s", file, diff)
		}
	}
}

func TestByteSize(t *testing.T) {
	for text, want := range map[string]ByteSize{
		"0": 0, "17": 17, "17B": 17, "10GiB": 10 * GiB, "10 GiB": 10 * GiB, "3mib": 3 * MiB, "2TB": 2e12, "5kB": 5000,
		"9223372036854775807": 1<<63 - 1,
	} {
		if got, err := ParseByteSize(text); err != nil || got != want {
			t.Errorf("%q is %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "GiB", "-1", "1.5GiB", "10G", "1 0", "9223372036854775808", "9999999999GiB", "8388608TiB", "0x10", "1GiB "} {
		if got, err := ParseByteSize(text); err == nil {
			t.Errorf("%q was taken for %d", text, got)
		}
	}
}

func TestByteSizeReadsBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := ByteSize(rapid.Int64Range(0, 1<<63-1).Draw(t, "size"))
		if got, err := ParseByteSize(b.String()); err != nil || got != b {
			t.Fatalf("%d is written %q and read %d, %v", int64(b), b, int64(got), err)
		}
	})
}

func FuzzByteSize(f *testing.F) {
	for _, s := range []string{"10GiB", "0", "1 kB", "-1", "99999999999999999999TiB"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		b, err := ParseByteSize(s)
		if err != nil {
			return
		}
		if b < 0 {
			t.Fatalf("%q is negative: %d", s, b)
		}
		if again, err := ParseByteSize(b.String()); err != nil || again != b {
			t.Fatalf("%q is %d, written %q, read %d, %v", s, b, b, again, err)
		}
	})
}

// Whatever a file holds, it is refused or leaves a valid configuration, and
// nothing panics.
func FuzzYAML(f *testing.F) {
	for _, s := range []string{"name: a\n", "properties: {a: [b, c]}\n", "seeds: [x]\n", "&a [*a]", "? [a]\n: b\n", "---\n...\n", "name: !!binary aGk=\n", "<<: {name: a}\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c := DefaultWorker()
		l := c.Flags(pflag.NewFlagSet("", pflag.ContinueOnError))
		l.readYAML("remex.yaml", []byte(s))
		if err := l.Load(nil); err != nil {
			return
		}
		if err := c.Validate(); err != nil {
			t.Fatalf("%q was accepted, and is not valid: %v", s, err)
		}
	})
}
