package frontend

import (
	"fmt"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"

	"github.com/remex-build/terraform-provider-remex/daemon/digest"
	"github.com/remex-build/terraform-provider-remex/daemon/rpc"
)

// violationMissing is the type of PreconditionFailure violation on which
// clients upload a blob again.
const violationMissing = "MISSING"

// maxViolations bounds the details of a status that travels in HTTP/2 trailers,
// of which Java clients accept 8 KiB.
const maxViolations = 32

// maxQuote bounds what an error quotes of a client's input.
const maxQuote = 256

// invalid refuses a request for what its field holds.
func invalid(field, format string, args ...any) error {
	text := fmt.Sprintf(format, args...)
	return withDetails(codes.InvalidArgument, field+": "+text, &errdetails.BadRequest{
		FieldViolations: []*errdetails.BadRequest_FieldViolation{{Field: field, Description: text}},
	})
}

// missingBlobs says which blobs the client must upload before it tries again.
// Bazel does so only if there is no other detail.
func missingBlobs(ds []digest.Digest) error {
	f := &errdetails.PreconditionFailure{}
	for _, d := range ds[:min(len(ds), maxViolations)] {
		f.Violations = append(f.Violations, &errdetails.PreconditionFailure_Violation{
			Type: violationMissing, Subject: "blobs/" + d.String(),
		})
	}
	text := "blob " + ds[0].String() + " is missing"
	if len(ds) > 1 {
		text = fmt.Sprintf("%d blobs are missing, blobs/%s among them", len(ds), ds[0])
	}
	return withDetails(codes.FailedPrecondition, text, f)
}

func withDetails(code codes.Code, text string, details ...protoadapt.MessageV1) error {
	st, err := status.New(code, text).WithDetails(details...)
	if err != nil {
		return status.Error(code, text) // a detail that cannot be marshalled is worth less than the code
	}
	return st.Err()
}

// unimplemented names the call that this server does not serve.
func unimplemented(call string) error {
	return status.Errorf(codes.Unimplemented, "%s is not supported by this server", call)
}

// toProto is err in a message; OK for nil.
func toProto(err error) *spb.Status {
	if err == nil {
		return &spb.Status{}
	}
	return status.Convert(rpc.ToStatus(err)).Proto()
}

// quote shows a piece of a client's input.
func quote(s string) string {
	if len(s) > maxQuote {
		return fmt.Sprintf("%q...", s[:maxQuote])
	}
	return fmt.Sprintf("%q", s)
}
