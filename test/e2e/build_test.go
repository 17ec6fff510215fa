package e2e

import (
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const example = "../../examples/cpp"

// A build engineer's first hour: build, build again, change a file, look at a
// failing test.
func TestBazel(t *testing.T) {
	c := shared(t)
	b := newBazel(t, example, c.Endpoint)
	unique(b)

	t.Run("clean build runs every action remotely", func(t *testing.T) {
		how := processes(t, b.run(0, "test", "//...", "//:passing"))
		if how["remote"] < 15 || how["linux-sandbox"]+how["local"]+how["processwrapper-sandbox"] > 0 {
			t.Errorf("actions ran like this: %v", how)
		}
	})
	t.Run("cached rebuild hits for every action", func(t *testing.T) {
		b.clean()
		how := processes(t, b.run(0, "test", "//...", "//:passing"))
		if how["remote"] > 0 || how["remote cache hit"] < 15 {
			t.Errorf("actions ran like this: %v", how)
		}
	})
	t.Run("incremental rebuild runs only what changed", func(t *testing.T) {
		b.write("gen/greeting.txt", "hello from a remote build, again "+t.TempDir())
		how := processes(t, b.run(0, "test", "//...", "//:passing"))
		if how["remote"] == 0 || how["remote"] > 14 {
			t.Errorf("actions ran like this: %v", how)
		}
	})
	t.Run("outputs equal a local build's", func(t *testing.T) {
		local := newBazel(t, b.dir, "")
		local.run(0, "build", "//...")
		b.run(0, "build", "//...")
		want, got := hashes(t, filepath.Join(local.dir, "bazel-bin")), hashes(t, filepath.Join(b.dir, "bazel-bin"))
		for _, sums := range []map[string]string{want, got} {
			for name := range sums {
				// Bazel's own notes of where it built, not outputs of actions.
				if strings.HasSuffix(name, "MANIFEST") || strings.HasSuffix(name, "runfiles_manifest") {
					delete(sums, name)
				}
			}
		}
		if len(want) < 20 {
			t.Fatalf("the local build left only %d files", len(want))
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("local (-) and remote (+) differ:\n%s", diff)
		}
	})
	t.Run("a failing test is a result", func(t *testing.T) {
		out := b.run(3, "test", "//tests:failing_test")
		if !strings.Contains(out, "FAILED") || !strings.Contains(string(b.output("bazel-testlogs/tests/failing_test/test.log")), "fails, as it should") {
			t.Errorf("Bazel said:\n%s", out)
		}
	})
	t.Run("a test that times out says so and leaves its log and XML", func(t *testing.T) {
		out := b.run(3, "test", "--test_timeout=3", "//tests:timing_out_test")
		if !strings.Contains(out, "TIMEOUT") {
			t.Errorf("Bazel said:\n%s", out)
		}
		log := string(b.output("bazel-testlogs/tests/timing_out_test/test.log"))
		if !strings.Contains(log, "never comes") {
			t.Errorf("test.log:\n%s", log)
		}
		xml := string(b.output("bazel-testlogs/tests/timing_out_test/test.xml"))
		if !strings.Contains(xml, "<testsuite") {
			t.Errorf("test.xml:\n%s", xml)
		}
	})
}

func TestBazelDownloadsOnlyWhatIsAskedFor(t *testing.T) {
	c := shared(t)
	b := newBazel(t, example, c.Endpoint)
	unique(b)
	b.run(0, "build", "--remote_download_minimal", "//app:hello", "//gen:forest_list")
	if _, err := os.Stat(filepath.Join(b.dir, "bazel-bin/app/hello")); err == nil {
		t.Error("a build without the bytes left an executable")
	}
	b.run(0, "build", "--remote_download_toplevel", "//app:hello", "//gen:forest_list")
	b.output("bazel-bin/app/hello")
	if got := string(b.output("bazel-bin/gen/forest_list.txt")); !strings.Contains(got, "file 2") {
		t.Errorf("the list of a tree's files is %q", got)
	}
}

func TestBazelTreeArtifact(t *testing.T) {
	c := shared(t)
	b := newBazel(t, example, c.Endpoint)
	unique(b)
	for _, round := range []string{"built", "from cache"} {
		b.run(0, "build", "//gen:forest")
		for name, want := range map[string]string{"a/b/1.txt": "file 1\n", "a/b/3.txt": "file 3\n"} {
			if got := string(b.output("bazel-bin/gen/forest/" + name)); got != want {
				t.Errorf("%s: %s holds %q", round, name, got)
			}
		}
		b.clean()
	}
}

func TestBazelManyJobs(t *testing.T) {
	c := shared(t)
	b := newBazel(t, sleepy(t, 256, "0.02"), c.Endpoint)
	unique(b)
	how := processes(t, b.run(0, "build", "--jobs=128", "//..."))
	if how["remote"] != 256 {
		t.Errorf("actions ran like this: %v", how)
	}
}

// unique gives the workspace an instance of its own: tenants don't share an
// action cache, so that no other test's results are found there.
func unique(b *bazel) {
	b.flags = append(b.flags, "--remote_instance_name=e2e/"+rand.Text())
}
