package sandbox

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// leaseDir holds one locked file per uid in use: several workers on a machine
// (remex dev has them) must not share one, since all processes of an
// executor's uid are killed when its action ends.
const leaseDir = "/run/remex/uids"

// leaseSpan is how many uids from the base are tried.
const leaseSpan = 4096

// lease is a uid that no other executor on this machine has while f is open,
// here or in a runner.
type lease struct {
	uid int
	f   *os.File
}

// leaseUID finds the next free uid from first on.
func leaseUID(first, end int) (lease, error) {
	dir := leaseDir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		dir = filepath.Join(os.TempDir(), "remex-uids")
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return lease{}, fmt.Errorf("make the directory of uids in use: %w", err)
		}
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Geteuid() {
		return lease{}, fmt.Errorf("%s is not a directory of ours", dir)
	}
	for uid := first; uid < end; uid++ {
		f, err := os.OpenFile(fmt.Sprintf("%s/%d", dir, uid), os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return lease{}, fmt.Errorf("lease a uid: %w", err)
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return lease{uid, f}, nil
		}
		f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return lease{}, fmt.Errorf("lease a uid: %w", err)
		}
	}
	return lease{}, fmt.Errorf("no free uid from %d to %d", first, end-1)
}

// mapped reports whether the uids and gids from first to last exist in this
// process's user namespace.
func mapped(first, last int) bool {
	for _, name := range []string{"/proc/self/uid_map", "/proc/self/gid_map"} {
		f, err := os.Open(name)
		if err != nil {
			return false
		}
		ok := false
		for s := bufio.NewScanner(f); s.Scan(); {
			var inside, outside, n int
			if _, err := fmt.Sscan(strings.TrimSpace(s.Text()), &inside, &outside, &n); err == nil && inside <= first && last < inside+n {
				ok = true
			}
		}
		f.Close()
		if !ok {
			return false
		}
	}
	return true
}

// currentUmask reads the process's umask without changing it.
func currentUmask() int {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return -1
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		var m int
		if _, err := fmt.Sscanf(line, "Umask: %o", &m); err == nil {
			return m
		}
	}
	return -1
}
