package sandbox

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// DefaultPath is where a command without a slash is looked for when its
// environment has no PATH.
const DefaultPath = "/usr/local/bin:/usr/bin:/bin"

// lookUp finds the file to execute, or says why there is none. A name with a
// slash is relative to the working directory, else to the input root, as it
// was for clients before REAPI 2.3.
func lookUp(c *command) (path, why string) {
	name := c.Argv[0]
	if strings.Contains(name, "/") {
		if filepath.IsAbs(name) {
			return name, explain(name, name)
		}
		if why = explain(name, c.Cwd+"/"+name); why == "" {
			return name, ""
		}
		if alt := c.Root + "/" + name; explain(name, alt) == "" {
			return alt, ""
		}
		return "", why
	}
	dirs := DefaultPath
	for _, kv := range c.Env {
		if v, ok := strings.CutPrefix(kv, "PATH="); ok {
			dirs = v
		}
	}
	for dir := range strings.SplitSeq(dirs, ":") {
		if dir == "" {
			dir = "."
		}
		path = dir + "/" + name
		at := path
		if !filepath.IsAbs(path) {
			at = c.Cwd + "/" + path
		}
		if explain(name, at) == "" {
			return path, ""
		}
	}
	return "", fmt.Sprintf("command not found: %q is in no directory of PATH %q", name, dirs)
}

// explain says why the file at path cannot be run, or "".
func explain(name, path string) string {
	var st unix.Stat_t
	switch err := unix.Stat(path, &st); {
	case errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR):
		return fmt.Sprintf("command not found: %q", name)
	case err != nil:
		return fmt.Sprintf("cannot run %q: %v", name, err)
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return fmt.Sprintf("cannot run %q: not a regular file", name)
	case st.Mode&0o111 == 0:
		return fmt.Sprintf("cannot run %q: not executable", name)
	}
	return ""
}
