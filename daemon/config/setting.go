package config

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// A setting is one knob: its one name in all spellings, and how text becomes
// its value.
type setting struct {
	name  string
	kind  string // as --help shows it
	usage string
	shape shape
	// set takes the values of one source in place of those of weaker ones.
	set func(values []string) error
	// show is the present value in the spelling of a flag.
	show func() string
}

// shape says what a setting looks like in YAML.
type shape struct {
	node yaml.Kind
	tags []string // of the scalars
	want string   // how to write it, for errors
}

func (s setting) flag() string { return "--" + s.name }

func (s setting) env() string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(s.name, "-", "_"))
}

// split cuts the one string that a flag or a variable is into values.
func (s setting) split(text string) []string {
	if s.shape.node == yaml.ScalarNode {
		return []string{text}
	}
	var values []string
	for v := range strings.SplitSeq(text, ",") {
		if v = strings.TrimSpace(v); v != "" {
			values = append(values, v)
		}
	}
	return values
}

func scalar[T any](name, kind, want string, tags []string, p *T, parse func(string) (T, error), show func(T) string, usage string) setting {
	return setting{
		name: name, kind: kind, usage: usage,
		shape: shape{node: yaml.ScalarNode, tags: tags, want: want},
		set: func(values []string) error {
			// A flag that is given twice means its last value.
			v, err := parse(values[len(values)-1])
			if err == nil {
				*p = v
			}
			return err
		},
		show: func() string { return show(*p) },
	}
}

func text(name string, p *string, usage string) setting {
	return scalar(name, "string", "text (in quotes when it looks like a number)", []string{"!!str"}, p,
		func(s string) (string, error) { return s, nil },
		func(s string) string { return s }, usage)
}

func number(name string, p *int, usage string) setting {
	return scalar(name, "int", "a whole number", []string{"!!int"}, p,
		func(s string) (int, error) {
			n, err := strconv.Atoi(s)
			if err != nil {
				return 0, fmt.Errorf("%q is no whole number", s)
			}
			return n, nil
		}, strconv.Itoa, usage)
}

func size(name string, p *ByteSize, usage string) setting {
	return scalar(name, "size", "a size such as 10GiB", []string{"!!str", "!!int"}, p,
		ParseByteSize, ByteSize.String, usage)
}

func duration(name string, p *time.Duration, usage string) setting {
	return scalar(name, "duration", "a duration such as 90s or 3h", []string{"!!str"}, p,
		func(s string) (time.Duration, error) {
			d, err := time.ParseDuration(s)
			if err != nil {
				return 0, fmt.Errorf("%q is no duration: write one such as 90s or 3h", s)
			}
			return d, nil
		}, time.Duration.String, usage)
}

func list(name string, p *[]string, usage string) setting {
	return setting{
		name: name, kind: "list", usage: usage,
		shape: shape{node: yaml.SequenceNode, tags: []string{"!!str"}, want: "a list of texts"},
		set: func(values []string) error {
			*p = slices.Clone(values)
			return nil
		},
		show: func() string { return strings.Join(*p, ",") },
	}
}

func properties(name string, p *map[string][]string, usage string) setting {
	return setting{
		name: name, kind: "name=value,...", usage: usage,
		shape: shape{node: yaml.MappingNode, tags: []string{"!!str"}, want: "a map of names to texts or lists of texts"},
		set: func(values []string) error {
			m := map[string][]string{}
			for _, pair := range values {
				k, v, ok := strings.Cut(pair, "=")
				if !ok || k == "" {
					return fmt.Errorf("%q is no property: write name=value", pair)
				}
				if !slices.Contains(m[k], v) {
					m[k] = append(m[k], v)
				}
			}
			*p = m
			return nil
		},
		show: func() string {
			var pairs []string
			for k, vs := range *p {
				for _, v := range vs {
					pairs = append(pairs, k+"="+v)
				}
			}
			slices.SortFunc(pairs, cmp.Compare[string])
			return strings.Join(pairs, ",")
		},
	}
}

// A Problem is something wrong with one setting, or with several together.
type Problem struct {
	Settings []string // the names, the one to change first
	Text     string
}

func (p Problem) Error() string { return strings.Join(p.Settings, ", ") + ": " + p.Text }

// problems gathers them, so that all are reported at once.
type problems []Problem

func (ps *problems) add(bad bool, text string, settings ...string) {
	if bad {
		*ps = append(*ps, Problem{Settings: settings, Text: text})
	}
}

// err is nil when nothing was found.
func (ps problems) err() error {
	errs := make([]error, len(ps))
	for i, p := range ps {
		errs[i] = p
	}
	return errors.Join(errs...)
}
