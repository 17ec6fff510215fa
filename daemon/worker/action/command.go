package action

import (
	"path"
	"slices"
	"strings"
	"time"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"

	"github.com/remex-build/terraform-provider-remex/daemon/sandbox"
)

// command is a Command message taken apart and checked.
type command struct {
	exec    sandbox.Command
	outputs []output
	need    []string // directories to be made, relative to the input root
	paths   bool     // by output_paths, not by the lists before REAPI 2.1
	format  repb.Command_OutputDirectoryFormat
	mtime   bool // output node properties
	mode    bool
}

// output is an output that the client wants.
type output struct {
	path string       // as the client wrote it
	at   string       // relative to the input root
	kind sandbox.Kind // what it has to be; Missing: anything
}

func parseCommand(m *repb.Command, timeout time.Duration) (*command, error) {
	c := &command{format: m.GetOutputDirectoryFormat()}
	c.exec.Timeout = timeout
	args := m.GetArguments()
	if len(args) == 0 || args[0] == "" {
		return nil, invalid("the command has no arguments: nothing to run")
	}
	for _, arg := range args {
		if strings.IndexByte(arg, 0) >= 0 {
			return nil, invalid("argument %.100q has a NUL in it", arg)
		}
	}
	c.exec.Argv = args
	for _, v := range m.GetEnvironmentVariables() {
		if v.GetName() == "" || strings.ContainsAny(v.GetName(), "=\x00") || strings.IndexByte(v.GetValue(), 0) >= 0 {
			return nil, invalid("environment variable %.100q cannot be set to %.100q", v.GetName(), v.GetValue())
		}
		c.exec.Env = append(c.exec.Env, v.GetName()+"="+v.GetValue())
	}
	wd, err := inside("", m.GetWorkingDirectory())
	if err != nil {
		return nil, invalid("working_directory %.200q %s", m.GetWorkingDirectory(), err)
	}
	c.exec.Dir = wd
	c.need = append(c.need, wd)
	if err := c.wanted(wd, m); err != nil {
		return nil, err
	}
	slices.Sort(c.need)
	c.need = slices.Compact(c.need)
	for _, name := range m.GetOutputNodeProperties() {
		switch name {
		case "mtime":
			c.mtime = true
		case "unix_mode":
			c.mode = true
		default:
			return nil, invalid("output node property %q is unknown", name)
		}
	}
	return c, nil
}

// wanted reads the lists of outputs.
func (c *command) wanted(wd string, m *repb.Command) error {
	lists := []struct {
		field string
		paths []string
		kind  sandbox.Kind
	}{
		{"output_paths", m.GetOutputPaths(), sandbox.Missing},
		{"output_files", m.GetOutputFiles(), sandbox.RegularFile},
		{"output_directories", m.GetOutputDirectories(), sandbox.Directory},
	}
	if c.paths = len(m.GetOutputPaths()) > 0; c.paths {
		lists = lists[:1]
	}
	for _, l := range lists {
		for _, p := range l.paths {
			at, err := inside(wd, p)
			if err != nil {
				return invalid("%s: %.200q %s", l.field, p, err)
			}
			if at == "" && l.kind == sandbox.RegularFile {
				return invalid("%s: %q is no file", l.field, p)
			}
			c.outputs = append(c.outputs, output{p, at, l.kind})
			if parent := path.Dir(at); at != "" && parent != "." {
				c.need = append(c.need, parent)
			}
		}
	}
	return nil
}

type pathError string

func (e pathError) Error() string { return string(e) }

// inside resolves p, relative to the directory dir of the input root, to a
// path relative to the input root, which it must not leave.
func inside(dir, p string) (string, error) {
	switch {
	case strings.HasPrefix(p, "/"):
		return "", pathError("is absolute")
	case strings.IndexByte(p, 0) >= 0:
		return "", pathError("has a NUL in it")
	case len(p) > 3500:
		return "", pathError("is too long")
	}
	at := path.Join(dir, p)
	if at == ".." || strings.HasPrefix(at, "../") {
		return "", pathError("leads out of the input root")
	}
	if at == "." {
		at = ""
	}
	return at, nil
}
