//go:build race

package placement

// underRace says that arithmetic takes twenty times as long.
const underRace = true
