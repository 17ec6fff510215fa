// Package match decides which workers may run an action: it holds what an
// action's platform asks for against what a worker's pool offers.
//
// Each property of a platform is one of three things. A request tells the
// worker how to run the action and excludes no worker. A resource is a number,
// of which the pool must offer at least that much. Everything else is matched:
// the pool must list that value under that name, for each time the platform
// names it. What no pool lists matches nothing, container-image included: a
// pool that runs images lists it.
package match

import (
	"slices"
	"strconv"
	"strings"
)

// Property is one property of a platform.
type Property struct{ Name, Value string }

// DefaultPool is the pool that actions with an empty platform run in.
const DefaultPool = "default"

// poolProperty is the property by which a platform names a pool.
const poolProperty = "Pool"

// Rules say which properties are requests or resources. An entry that ends in
// an asterisk stands for all names that begin so.
type Rules struct {
	Requests  []string
	Resources []string
}

// DefaultRules are those of clusters that configure none.
func DefaultRules() Rules {
	return Rules{
		Requests:  []string{"cache-silo-key", "InputRootAbsolutePath", "docker*"},
		Resources: []string{"cores", "memory", "min-*"},
	}
}

func listed(name string, list []string) bool {
	return slices.ContainsFunc(list, func(e string) bool {
		prefix, open := strings.CutSuffix(e, "*")
		return name == e || open && strings.HasPrefix(name, prefix)
	})
}

// Platform is what an action asks for, without the requests, in one order.
type Platform struct {
	need []need
	key  string
}

type need struct {
	Property
	least    int64
	resource bool
}

// Platform reads the properties of an action. Two platforms that ask for the
// same have the same Key.
func (r Rules) Platform(props []Property) Platform {
	var p Platform
	for _, q := range props {
		if listed(q.Name, r.Requests) {
			continue
		}
		n := need{Property: q}
		if listed(q.Name, r.Resources) {
			n.least, n.resource = Amount(q.Value)
		}
		p.need = append(p.need, n)
	}
	if len(p.need) == 0 {
		return p
	}
	slices.SortFunc(p.need, func(a, b need) int {
		if c := strings.Compare(a.Name, b.Name); c != 0 {
			return c
		}
		return strings.Compare(a.Value, b.Value)
	})
	p.need = slices.Compact(p.need)
	var b strings.Builder
	for _, n := range p.need {
		b.WriteString(strconv.Quote(n.Name))
		b.WriteString(strconv.Quote(n.Value))
	}
	p.key = b.String()
	return p
}

// Key identifies the platform; the empty platform's is "".
func (p Platform) Key() string { return p.key }

// Profile is what the workers of a pool offer.
type Profile struct {
	pool  string
	props map[string][]string
	key   string
}

// NewProfile describes a pool. Two that offer the same have the same Key.
func NewProfile(pool string, props map[string][]string) *Profile {
	if pool == "" {
		pool = DefaultPool
	}
	names := make([]string, 0, len(props))
	for name := range props {
		names = append(names, name)
	}
	slices.Sort(names)
	var b strings.Builder
	b.WriteString(strconv.Quote(pool))
	for _, name := range names {
		values := slices.Sorted(slices.Values(props[name]))
		b.WriteString(strconv.Quote(name))
		for _, v := range values {
			b.WriteString("=")
			b.WriteString(strconv.Quote(v))
		}
	}
	return &Profile{pool: pool, props: props, key: b.String()}
}

// Key identifies the profile.
func (w *Profile) Key() string { return w.key }

// Pool is the name of the pool.
func (w *Profile) Pool() string { return w.pool }

// Fits reports whether workers of the profile may run actions of the platform.
func (p Platform) Fits(w *Profile) bool {
	if len(p.need) == 0 {
		return w.pool == DefaultPool
	}
	for _, n := range p.need {
		if !n.met(w) {
			return false
		}
	}
	return true
}

// met: OSFamily's values are compared without regard to case, as clients
// disagree on it.
func (n need) met(w *Profile) bool {
	values := w.props[n.Name]
	if len(values) == 0 && n.Name == poolProperty {
		return n.Value == w.pool
	}
	return slices.ContainsFunc(values, func(v string) bool {
		if n.resource {
			have, ok := Amount(v)
			return ok && have >= n.least
		}
		return v == n.Value || v == "*" || n.Name == "OSFamily" && strings.EqualFold(v, n.Value)
	})
}

// Unmet names the property for which none of the profiles will do: the first
// that no profile meets, else the first that the profile lacks that meets most.
// It reports false when some profile fits, or when the platform is empty.
func (p Platform) Unmet(profiles []*Profile) (Property, bool) {
	if len(p.need) == 0 {
		return Property{}, false
	}
	for _, n := range p.need {
		if !slices.ContainsFunc(profiles, n.met) {
			return n.Property, true
		}
	}
	most := -1
	var lacks Property
	for _, w := range profiles {
		met, first := 0, -1
		for i, n := range p.need {
			if n.met(w) {
				met++
			} else if first < 0 {
				first = i
			}
		}
		if first < 0 {
			return Property{}, false
		}
		if met > most {
			most, lacks = met, p.need[first].Property
		}
	}
	return lacks, true
}

// Amount reads a number, with a binary suffix (Ki, Mi, Gi, Ti) or none.
func Amount(s string) (int64, bool) {
	shift := 0
	for i, suffix := range []string{"Ki", "Mi", "Gi", "Ti"} {
		if rest, ok := strings.CutSuffix(s, suffix); ok {
			s, shift = rest, 10*(i+1)
			break
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > (1<<63-1)>>shift {
		return 0, false
	}
	return n << shift, true
}
