package e2e

import (
	"crypto/rand"
	"fmt"
	"testing"
	"time"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"

	"github.com/remex-build/terraform-provider-remex/test/reapi"
)

// Of idle workers the one that has the most bytes of an action's inputs runs it:
// the disk that owns them, or the worker that made them.
func TestActionsGoWhereTheirInputsAre(t *testing.T) {
	c := fresh(t, "--schedulers=1", "--workers=4", "--executors=1", "--replicas=1")
	client := dial(t, c)
	run := func(i int, script string, input *repb.Digest) *repb.ActionResult {
		t.Helper()
		time.Sleep(100 * time.Millisecond) // until all are idle, and have said so
		a := shell(script)
		a.command.OutputPaths = []string{fmt.Sprint("out/", i)}
		lib, libDigest := reapi.Message(&repb.Directory{Files: []*repb.FileNode{{Name: "large", Digest: input}}})
		a.root = &repb.Directory{Directories: []*repb.DirectoryNode{{Name: "lib", Digest: libDigest}}}
		a.blobs = [][]byte{lib}
		resp, _, err := a.submit(t.Context(), client)
		if err != nil || resp.Result.GetExitCode() != 0 {
			t.Fatal(resp, err)
		}
		return resp.Result
	}
	large := make([]byte, 5<<20)
	rand.Read(large)
	if err := client.Write(t.Context(), large); err != nil {
		t.Fatal(err)
	}
	var owner string
	for i := range 8 {
		at := run(i, "head -c 3000000 /dev/urandom >out/"+fmt.Sprint(i), reapi.Name(large)).ExecutionMetadata.Worker
		if owner == "" {
			owner = at
		}
		if at != owner {
			t.Errorf("action %d ran on %s, the first one on %s", i, at, owner)
		}
	}
	made := run(100, "head -c 3000000 /dev/urandom >out/100", reapi.Name([]byte{}))
	have := map[string]bool{made.ExecutionMetadata.Worker: true} // and the output's owner, if that is another
	for i := range 8 {
		at := run(200+i, fmt.Sprintf("wc -c <lib/large >out/%d", 200+i), made.OutputFiles[0].Digest).ExecutionMetadata.Worker
		if have[at] = true; len(have) > 2 {
			t.Fatalf("an output that two workers have was used by %v", have)
		}
	}
}
