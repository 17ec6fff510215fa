package frontend

import (
	"context"
	"math"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"github.com/bazelbuild/remote-apis/build/bazel/semver"
)

type capabilities struct {
	repb.UnimplementedCapabilitiesServer
}

// nodeProperties are the NodeProperties that workers set and return.
var nodeProperties = [...]string{"mtime", "unix_mode"}

// GetCapabilities answers the same for every instance. The lowest version is 2.0
// because some clients compare it with the one they speak, not with a range;
// what is not supported is told by its field, never by the version.
func (capabilities) GetCapabilities(_ context.Context, req *repb.GetCapabilitiesRequest) (*repb.ServerCapabilities, error) {
	if err := checkInstance(req.InstanceName); err != nil {
		return nil, err
	}
	var fns []repb.DigestFunction_Value
	for _, fn := range announced {
		fns = append(fns, repb.DigestFunction_Value(fn))
	}
	return &repb.ServerCapabilities{
		CacheCapabilities: &repb.CacheCapabilities{
			DigestFunctions:               fns,
			ActionCacheUpdateCapabilities: &repb.ActionCacheUpdateCapabilities{UpdateEnabled: true},
			CachePriorityCapabilities:     priorities(0, 0),
			MaxBatchTotalSizeBytes:        maxBatch,
			SymlinkAbsolutePathStrategy:   repb.SymlinkAbsolutePathStrategy_ALLOWED,
		},
		ExecutionCapabilities: &repb.ExecutionCapabilities{
			DigestFunction:                fns[0],
			DigestFunctions:               fns,
			ExecEnabled:                   true,
			ExecutionPriorityCapabilities: priorities(math.MinInt32, math.MaxInt32),
			SupportedNodeProperties:       nodeProperties[:],
		},
		DeprecatedApiVersion: &semver.SemVer{Major: 2, Minor: 0},
		LowApiVersion:        &semver.SemVer{Major: 2, Minor: 0},
		HighApiVersion:       &semver.SemVer{Major: 2, Minor: 12},
	}, nil
}

func priorities(low, high int32) *repb.PriorityCapabilities {
	return &repb.PriorityCapabilities{
		Priorities: []*repb.PriorityCapabilities_PriorityRange{{MinPriority: low, MaxPriority: high}},
	}
}
