package queue

import "time"

// minCharge is what a start costs at least: without it, starts at one instant
// would all be the same principal's.
const minCharge = 20 * time.Millisecond

// share is what a principal, or one of its invocations, has had of the
// executors, as virtual time: executor time plus a charge per start. One that
// had nothing for a while is put level with the least of the others, so that
// idleness saves up nothing.
type share struct {
	settled time.Duration // of attempts that ended, charges, and levelling
	running int
	starts  int64 // sum of the running ones' start times, in nanoseconds
	waiting int   // items queued
	kids    map[string]*share
}

func (s *share) usage(now int64) time.Duration {
	return s.settled + time.Duration(int64(s.running)*now-s.starts)
}

func (s *share) start(now int64) {
	s.running++
	s.starts += now
	s.settled += minCharge
}

func (s *share) stop(now, started int64) {
	s.running--
	s.starts -= started
	s.settled += time.Duration(now - started)
}

func (s *share) active() bool { return s.running > 0 || s.waiting > 0 }

// enter finds the child share for name, levelled with its active siblings when
// it had been idle.
func (s *share) enter(name string, now int64) *share {
	kid := s.kids[name]
	if kid == nil {
		kid = &share{}
		if s.kids == nil {
			s.kids = make(map[string]*share)
		}
		s.kids[name] = kid
	}
	if kid.active() {
		return kid
	}
	least, found := time.Duration(0), false
	for _, k := range s.kids {
		if u := k.usage(now); k.active() && (!found || u < least) {
			least, found = u, true
		}
	}
	if found {
		kid.settled = max(kid.settled, least)
	}
	return kid
}

// sweep forgets the children that are idle and no longer behind anybody.
func (s *share) sweep(now int64) {
	least, found := time.Duration(0), false
	for _, k := range s.kids {
		if u := k.usage(now); k.active() && (!found || u < least) {
			least, found = u, true
		}
	}
	for name, k := range s.kids {
		switch {
		case k.active():
			k.sweep(now)
		case !found || k.settled <= least:
			delete(s.kids, name)
		}
	}
}
