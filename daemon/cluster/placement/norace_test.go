//go:build !race

package placement

const underRace = false
