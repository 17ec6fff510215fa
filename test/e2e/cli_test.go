package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestGrpcurlSeesTheAPI(t *testing.T) {
	c := shared(t)
	grpcurl := os.Getenv("GRPCURL")
	if grpcurl == "" {
		t.Fatal("GRPCURL does not name the binary: run `make e2e`")
	}
	run := func(args ...string) string {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), grpcurl, append([]string{"-plaintext"}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("grpcurl %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	services := run(c.addr(), "list")
	for _, want := range []string{
		"build.bazel.remote.execution.v2.ActionCache",
		"build.bazel.remote.execution.v2.Capabilities",
		"build.bazel.remote.execution.v2.ContentAddressableStorage",
		"build.bazel.remote.execution.v2.Execution",
		"google.bytestream.ByteStream",
		"google.longrunning.Operations",
		"grpc.health.v1.Health",
		"remex.v1.Admin",
	} {
		if !strings.Contains(services, want) {
			t.Errorf("%s is not served:\n%s", want, services)
		}
	}
	capabilities := run(c.addr(), "build.bazel.remote.execution.v2.Capabilities/GetCapabilities")
	for _, want := range []string{`"SHA256"`, `"BLAKE3"`, `"execEnabled": true`, `"minor": 12`} {
		if !strings.Contains(capabilities, want) {
			t.Errorf("capabilities lack %s:\n%s", want, capabilities)
		}
	}
	for _, not := range []string{"supportedCompressors", "splitBlobSupport", "spliceBlobSupport", `"SHA1"`} {
		if strings.Contains(capabilities, not) {
			t.Errorf("capabilities announce %s:\n%s", not, capabilities)
		}
	}
	if health := run(c.addr(), "grpc.health.v1.Health/Check"); !strings.Contains(health, "SERVING") || strings.Contains(health, "NOT_SERVING") {
		t.Errorf("health: %s", health)
	}
}

func TestCommandLine(t *testing.T) {
	c := shared(t)
	t.Run("exec runs a command with inputs and fetches outputs", func(t *testing.T) {
		dir := t.TempDir()
		in := filepath.Join(dir, "in.txt")
		if err := os.WriteFile(in, []byte("words\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		out, errs, code := c.cli(t, "exec", "--input", in+"=data/in.txt", "--", "cat", "data/in.txt")
		if code != 0 || out != "words\n" {
			t.Errorf("exit code %d, printed %q and %q", code, out, errs)
		}
		_, errs, code = c.cli(t, "exec", "--", "sh", "-c", "echo oh no >&2; exit 7")
		if code != 7 || !strings.Contains(errs, "oh no") {
			t.Errorf("exit code %d, printed %q", code, errs)
		}
	})
	t.Run("cas puts, finds and gets", func(t *testing.T) {
		dir := t.TempDir()
		file := filepath.Join(dir, "blob")
		text := "kept for you " + dir
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		out, errs, code := c.cli(t, "cas", "put", file)
		if code != 0 {
			t.Fatalf("put: %d, %s", code, errs)
		}
		digest := strings.Fields(out)[0]
		if got, errs, code := c.cli(t, "cas", "get", digest); code != 0 || got != text {
			t.Errorf("get: %d, %q, %s", code, got, errs)
		}
		if _, errs, code := c.cli(t, "cas", "stat", digest); code != 0 {
			t.Errorf("stat: %d, %s", code, errs)
		}
		absent := strings.Repeat("0", 64) + "/5"
		if _, _, code := c.cli(t, "cas", "stat", absent); code == 0 {
			t.Error("what was never stored is found")
		}
		if _, errs, code := c.cli(t, "cas", "get", absent); code == 0 || !strings.Contains(errs, "holds no blob") {
			t.Errorf("get of what is absent: %d, %s", code, errs)
		}
	})
	t.Run("status describes the cluster", func(t *testing.T) {
		out, errs, code := c.cli(t, "status")
		if code != 0 || strings.Count(out, "scheduler") < 2 || strings.Count(out, "worker") < 3 {
			t.Errorf("%d\n%s\n%s", code, out, errs)
		}
		out, _, _ = c.cli(t, "status", "-o", "json")
		var st struct {
			Nodes []struct {
				Role      string
				Reachable bool
			}
		}
		if err := json.Unmarshal([]byte(out), &st); err != nil || len(st.Nodes) != 5 {
			t.Errorf("%v in\n%s", err, out)
		}
		for _, n := range st.Nodes {
			if !n.Reachable {
				t.Errorf("a %s is unreachable:\n%s", n.Role, out)
			}
		}
	})
	t.Run("bazelrc names the endpoint", func(t *testing.T) {
		out, _, code := c.cli(t, "bazelrc")
		if code != 0 || !strings.Contains(out, "--remote_executor="+c.Endpoint) {
			t.Errorf("%d\n%s", code, out)
		}
	})
	t.Run("nobody there is said plainly", func(t *testing.T) {
		_, errs, code := c.cli(t, "status", "--cluster", "grpc://127.0.0.1:9")
		if code == 0 || !strings.Contains(errs, "127.0.0.1:9") {
			t.Errorf("%d, %q", code, errs)
		}
	})
}

// What contradicts itself, or is not known, is refused at start with the line
// at fault.
func TestBadSettings(t *testing.T) {
	file := filepath.Join(t.TempDir(), "remex.yaml")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		yaml string
		args []string
		want []string
	}{
		"an unknown key":         {"name: n\nexecutorz: 3\n", []string{"worker", "--config", file}, []string{file + ":2", "executorz"}},
		"a key of another role":  {"name: n\nexecutors: 3\n", []string{"scheduler", "--config", file}, []string{file + ":2", "executors"}},
		"more acks than copies":  {"replicas: 2\nwrite-acks: 3\n", []string{"worker", "--config", file}, []string{file + ":2", "write-acks"}},
		"a size that is none":    {"disk-size: lots\n", []string{"worker", "--config", file}, []string{file + ":1", "disk-size"}},
		"plaintext on a network": {"", []string{"worker", "--listen-cluster", "0.0.0.0:8981"}, []string{"listen-cluster", "loopback"}},
		"an unknown flag":        {"", []string{"scheduler", "--no-such-flag"}, []string{"no-such-flag"}},
		"more copies than disks": {"", []string{"dev", "--workers", "1", "--replicas", "2", "--dir", t.TempDir()}, []string{"replicas"}},
	} {
		t.Run(name, func(t *testing.T) {
			write(c.yaml)
			cmd := exec.CommandContext(t.Context(), remex(t), c.args...)
			cmd.Env = append(os.Environ(), "REMEX_DIR="+t.TempDir())
			out, err := cmd.CombinedOutput()
			if err == nil {
				t.Fatal("it started")
			}
			for _, want := range c.want {
				if !strings.Contains(string(out), want) {
					t.Errorf("it does not mention %q:\n%s", want, out)
				}
			}
		})
	}
}
