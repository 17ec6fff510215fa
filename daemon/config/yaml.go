package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxFile bounds a configuration file.
const maxFile = 1 << 20

var yamlLine = regexp.MustCompile(`(?s)^line (\d+): (.*)$`)

func (l *Loader) readFile(path string) {
	f, err := os.Open(path)
	if err != nil {
		l.fail("--config", "%w", err)
		return
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	switch {
	case err != nil:
		l.fail("--config", "%w", err)
	case len(b) > maxFile:
		l.fail("--config", "%s is larger than 1MiB", path)
	default:
		l.readYAML(path, b)
	}
}

// readYAML reads one mapping of names to values.
func (l *Loader) readYAML(path string, b []byte) {
	dec := yaml.NewDecoder(bytes.NewReader(b))
	var doc, more yaml.Node
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return // an empty file sets nothing
	} else if err != nil {
		where, text := path, strings.TrimPrefix(err.Error(), "yaml: ")
		if m := yamlLine.FindStringSubmatch(text); m != nil {
			where, text = path+":"+m[1], m[2]
		}
		l.fail(where, "%s", text)
		return
	}
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		l.fail(path, "holds more than one YAML document")
		return
	}
	root := doc.Content[0]
	if root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
		return
	}
	if root.Kind != yaml.MappingNode {
		l.fail(at(path, root), "settings are written as `name: value`")
		return
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(root.Content); i += 2 {
		key, value := root.Content[i], root.Content[i+1]
		if line, ok := seen[key.Value]; ok {
			l.fail(at(path, key), "%s is set on line %d already", key.Value, line)
			continue
		}
		seen[key.Value] = key.Line
		j := slices.IndexFunc(l.settings, func(s setting) bool { return s.name == key.Value })
		if j < 0 || key.Kind != yaml.ScalarNode {
			l.fail(at(path, key), "%s", l.unknown(key.Value))
			continue
		}
		s := l.settings[j]
		values, ok := s.shape.values(value)
		if !ok {
			l.fail(at(path, value), "%s wants %s", s.name, s.shape.want)
			continue
		}
		l.apply(s, fmt.Sprintf("%s:%d: %s", path, value.Line, s.name), values)
	}
}

func at(path string, n *yaml.Node) string { return fmt.Sprintf("%s:%d", path, n.Line) }

// values are n's scalars, "name=value" for those of a mapping; false when n
// has another shape.
func (s shape) values(n *yaml.Node) ([]string, bool) {
	if n.Kind != s.node {
		return nil, false
	}
	switch n.Kind {
	case yaml.ScalarNode:
		return []string{n.Value}, slices.Contains(s.tags, n.ShortTag())
	case yaml.SequenceNode:
		return s.scalars(n, "")
	}
	var values []string
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if value.Kind == yaml.ScalarNode {
			value = &yaml.Node{Kind: yaml.SequenceNode, Content: []*yaml.Node{value}}
		}
		vs, ok := s.scalars(value, key.Value+"=")
		if !ok || key.Kind != yaml.ScalarNode || strings.Contains(key.Value, "=") {
			return nil, false
		}
		values = append(values, vs...)
	}
	return values, true
}

func (s shape) scalars(n *yaml.Node, prefix string) ([]string, bool) {
	var values []string
	for _, c := range n.Content {
		if n.Kind != yaml.SequenceNode || c.Kind != yaml.ScalarNode || !slices.Contains(s.tags, c.ShortTag()) {
			return nil, false
		}
		values = append(values, prefix+c.Value)
	}
	return values, true
}
