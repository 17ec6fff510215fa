package disk

import "github.com/remex-build/terraform-provider-remex/daemon/digest"

// Suspect has the files of d that Link hands out checked before the next Link:
// who ran an action that could write to them calls it when one has changed. A
// damaged file is then replaced, or its blob dropped.
func (s *Store) Suspect(d digest.Digest) { s.flag(d, 0, flagPlainOK|flagExecOK) }
