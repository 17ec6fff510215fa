package home

import "fmt"

// Describe says where a local call stands, for tests that find one stuck.
func (c *Core) Describe(n uint64) string {
	k := c.local[n]
	if k == nil {
		return "no such call"
	}
	_, holds := c.holds[k]
	return fmt.Sprintf("kind %d at %q, named %v %v, except %q, mine %v, tries %d, held %v, inherited %v, open %v",
		k.kind, k.at, k.named, k.name, k.except, k.mine, k.tries, holds, c.inherited(k.key), c.open)
}
