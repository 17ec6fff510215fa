// Package config owns what a node is told: the settings of each role, their
// defaults, and how flags, environment and a YAML file are read into them.
//
// Every setting has one name in three spellings: the flag --disk-size, the
// variable REMEX_DISK_SIZE and the key disk-size of the file that --config
// names. A flag goes before the variable, that before the file, and the file
// before the default. What is unknown, of another role, ill typed or
// contradictory is refused, all of it in one error that names each place.
package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

const envPrefix = "REMEX_"

// clientEnv are the variables of the client commands: they say nothing to a node.
var clientEnv = []string{"REMEX_CLUSTER", "REMEX_INSTANCE"}

// Loader reads one role's settings from all their sources.
type Loader struct {
	role      string
	other     string    // the other role
	settings  []setting // of this role
	foreign   []setting // of the other
	check     func() problems
	flags     map[string]*rawFlag
	file      *rawFlag
	origin    map[string]string // of each setting that was set: where
	errs      []error
	malformed bool
}

// rawFlag keeps a flag's values as text: they are judged together with
// everything else, and not one at a time while flags are parsed.
type rawFlag struct {
	kind, def string
	values    []string
}

func (f *rawFlag) String() string     { return f.def }
func (f *rawFlag) Type() string       { return f.kind }
func (f *rawFlag) Set(v string) error { f.values = append(f.values, v); return nil }

func newLoader(role, other string, settings, foreign []setting, check func() problems, fs *pflag.FlagSet) *Loader {
	l := &Loader{
		role: role, other: other, settings: settings, foreign: foreign, check: check,
		flags: map[string]*rawFlag{}, file: &rawFlag{kind: "file"}, origin: map[string]string{},
	}
	fs.Var(l.file, "config", "YAML file with settings by these names (env "+envPrefix+"CONFIG)")
	for _, s := range settings {
		f := &rawFlag{kind: s.kind, def: s.show()}
		l.flags[s.name] = f
		fs.Var(f, s.name, s.usage)
	}
	return l
}

// Load reads the file, then environ, then the flags, and checks the whole.
// The error names every problem and where it stands, one a line.
func (l *Loader) Load(environ []string) error {
	env := map[string]string{}
	for _, kv := range environ {
		if k, v, ok := strings.Cut(kv, "="); ok && strings.HasPrefix(k, envPrefix) {
			env[k] = v
		}
	}
	if path := l.path(env); path != "" {
		l.readFile(path)
	}
	l.readEnv(env)
	for _, s := range l.settings {
		if f := l.flags[s.name]; len(f.values) > 0 {
			var values []string
			for _, v := range f.values {
				values = append(values, s.split(v)...)
			}
			l.apply(s, s.flag(), values)
		}
	}
	if !l.malformed {
		for _, p := range l.check() {
			l.errs = append(l.errs, l.place(p))
		}
	}
	return errors.Join(l.errs...)
}

// path is the configuration file's, "" for none.
func (l *Loader) path(env map[string]string) string {
	if n := len(l.file.values); n > 0 {
		return l.file.values[n-1]
	}
	return env[envPrefix+"CONFIG"]
}

func (l *Loader) fail(where, format string, args ...any) {
	l.malformed = true
	l.errs = append(l.errs, fmt.Errorf("%s: "+format, append([]any{where}, args...)...))
}

// apply gives a setting the values of one source. What does not parse keeps
// the whole from being checked: a default in its place would mislead.
func (l *Loader) apply(s setting, where string, values []string) {
	if err := s.set(values); err != nil {
		l.fail(where, "%w", err)
		return
	}
	l.origin[s.name] = where
}

// place says of a problem where each of its settings was given.
func (l *Loader) place(p Problem) error {
	var where []string
	for _, name := range p.Settings {
		o, ok := l.origin[name]
		if !ok {
			o = name + " (by default)"
		}
		where = append(where, o)
	}
	return fmt.Errorf("%s: %s", strings.Join(where, ", "), p.Text)
}

func (l *Loader) readEnv(env map[string]string) {
	known := map[string]bool{envPrefix + "CONFIG": true}
	for _, s := range l.settings {
		known[s.env()] = true
		if v, ok := env[s.env()]; ok {
			l.apply(s, s.env(), s.split(v))
		}
	}
	var rest []string
	for k := range env {
		if !known[k] && !slices.Contains(clientEnv, k) {
			rest = append(rest, k)
		}
	}
	slices.Sort(rest)
	for _, k := range rest {
		l.fail(k, "%s", l.unknown(strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(k, envPrefix)), "_", "-")))
	}
}

// unknown says what is wrong with a name that is no setting of this role.
func (l *Loader) unknown(name string) string {
	if slices.ContainsFunc(l.foreign, func(s setting) bool { return s.name == name }) {
		return fmt.Sprintf("%s is a setting of a %s, and this is a %s", name, l.other, l.role)
	}
	best, text := 3, fmt.Sprintf("no setting is called %q", name)
	for _, s := range l.settings {
		if d := len(name) - len(s.name); d > 2 || d < -2 {
			continue
		}
		if d := distance(name, s.name); d < best {
			best, text = d, fmt.Sprintf("no setting is called %q; did you mean %s?", name, s.name)
		}
	}
	return text
}

// Unknown explains a flag --name that the role does not have.
func (l *Loader) Unknown(name string) string { return l.unknown(name) }

// distance is how many characters must change to make b of a.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		prev := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := prev
			if a[i] != b[j] {
				cost++
			}
			prev = row[j+1]
			row[j+1] = min(cost, prev+1, row[j]+1)
		}
	}
	return row[len(b)]
}
