package main

import (
	_ "cloud.google.com/go/longrunning/autogen/longrunningpb"
	_ "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	_ "github.com/bazelbuild/remote-apis/build/bazel/semver"
	_ "github.com/cespare/xxhash/v2"
	_ "github.com/google/go-cmp/cmp"
	_ "github.com/google/renameio/v2"
	_ "github.com/google/uuid"
	_ "github.com/hashicorp/memberlist"
	_ "github.com/prometheus/client_golang/prometheus/promhttp"
	_ "github.com/sethvargo/go-retry"
	_ "github.com/spf13/cobra"
	_ "github.com/spf13/pflag"
	_ "github.com/zeebo/blake3"
	_ "go.uber.org/goleak"
	_ "go.yaml.in/yaml/v3"
	_ "golang.org/x/sync/errgroup"
	_ "golang.org/x/sys/unix"
	_ "golang.org/x/time/rate"
	_ "google.golang.org/genproto/googleapis/bytestream"
	_ "google.golang.org/genproto/googleapis/rpc/errdetails"
	_ "google.golang.org/grpc"
	_ "google.golang.org/grpc/health"
	_ "google.golang.org/grpc/reflection"
	_ "google.golang.org/protobuf/proto"
	_ "pgregory.net/rapid"
)

func main() {}
