package action

import (
	"fmt"
	"testing"
)

// BenchmarkTrivial is an action with nothing around it: no inputs, no outputs,
// messages sent along, no network.
func BenchmarkTrivial(b *testing.B) {
	r := newRig(b, nil)
	c := script("")
	c.Arguments = []string{"/bin/true"}
	task := r.task(c, nil, nil)
	for i := 0; b.Loop(); i++ {
		t := *task
		t.ID = fmt.Sprint(i)
		if _, err := r.a.Run(b.Context(), 0, &t, func() {}, func() {}); err != nil {
			b.Fatal(err)
		}
	}
}
