package frontend

import (
	"fmt"
	"slices"
	"strings"
	"time"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
)

// checkTimeout gives the action's timeout, the longest one if it has none.
func (f *Frontend) checkTimeout(a *repb.Action) (time.Duration, error) {
	if a.Timeout == nil {
		return f.maxTimeout, nil
	}
	if err := a.Timeout.CheckValid(); err != nil {
		return 0, invalid("action.timeout", "%s", clip(err.Error()))
	}
	d := a.Timeout.AsDuration()
	switch {
	case d < 0:
		return 0, invalid("action.timeout", "%s is negative", d)
	case d > f.maxTimeout:
		return 0, invalid("action.timeout", "%s is more than the longest allowed, %s", d, f.maxTimeout)
	case d == 0:
		return f.maxTimeout, nil
	}
	return d, nil
}

// checkCommand refuses what no worker could run, or what reaches out of the
// input root.
func checkCommand(c *repb.Command) error {
	if len(c.Arguments) == 0 || c.Arguments[0] == "" {
		return invalid("command.arguments", "names no program")
	}
	for i, arg := range c.Arguments {
		if hasNUL(arg) {
			return invalid(fmt.Sprintf("command.arguments[%d]", i), "%s has a NUL", quote(arg))
		}
	}
	for i, v := range c.EnvironmentVariables {
		if name := v.GetName(); name == "" || strings.ContainsAny(name, "=\x00") || hasNUL(v.GetValue()) {
			return invalid(fmt.Sprintf("command.environment_variables[%d]", i), "%s cannot be set", quote(name))
		}
	}
	if err := checkPath(c.WorkingDirectory, "command.working_directory"); err != nil {
		return err
	}
	for _, list := range []struct {
		field string
		paths []string
	}{
		{"command.output_paths", c.OutputPaths},
		{"command.output_files", c.OutputFiles},
		{"command.output_directories", c.OutputDirectories},
	} {
		for i, p := range list.paths {
			if err := checkPath(p, fmt.Sprintf("%s[%d]", list.field, i)); err != nil {
				return err
			}
		}
	}
	for i, p := range c.OutputNodeProperties {
		if !slices.Contains(nodeProperties[:], p) {
			return invalid(fmt.Sprintf("command.output_node_properties[%d]", i), "%s is not a property of this server", quote(p))
		}
	}
	return nil
}

// checkPath refuses a path that does not stay below where it starts. The empty
// path is that place itself.
func checkPath(p, field string) error {
	switch {
	case hasNUL(p):
		return invalid(field, "path %s has a NUL", quote(p))
	case strings.HasPrefix(p, "/"):
		return invalid(field, "path %s is absolute", quote(p))
	}
	for s := range strings.SplitSeq(p, "/") {
		if s == ".." {
			return invalid(field, "path %s has a component ..", quote(p))
		}
	}
	return nil
}

func hasNUL(s string) bool { return strings.IndexByte(s, 0) >= 0 }

// firstOutput tells actions apart that differ in little else: the same action
// of successive builds has the same first output.
func firstOutput(c *repb.Command) string {
	for _, list := range [][]string{c.OutputPaths, c.OutputFiles, c.OutputDirectories} {
		if len(list) > 0 {
			return list[0]
		}
	}
	return ""
}

// platform is the action's, or the command's where clients older than 2.2 have
// it.
func platform(a *repb.Action, c *repb.Command) []Property {
	p := a.GetPlatform().GetProperties()
	if a.Platform == nil {
		p = c.GetPlatform().GetProperties()
	}
	properties := make([]Property, len(p))
	for i, x := range p {
		properties[i] = Property{Name: x.GetName(), Value: x.GetValue()}
	}
	return properties
}
