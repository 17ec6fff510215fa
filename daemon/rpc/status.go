package rpc

import (
	"context"
	"errors"
	"strings"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/remex-build/terraform-provider-remex/daemon/proto"
)

// Coder is what an error of ours implements to become a gRPC status.
type Coder interface{ Code() codes.Code }

// Error is an error of this package with its code.
type Error struct {
	code codes.Code
	text string
}

func (e *Error) Error() string    { return e.text }
func (e *Error) Code() codes.Code { return e.code }

// maxText bounds the text of a status: it travels in a header, percent-encoded,
// and clients accept 8 KiB of headers.
const maxText = 2 << 10

// ToStatus turns err into a gRPC status error with err's whole text and the
// code of the first error in its tree (from the outside in) that has one: a
// Coder, a status, whose details are kept too, or one of the contexts' errors.
// Other errors are Internal.
func ToStatus(err error) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	code, st := find(err)
	if st == nil {
		return status.Error(code, cleanText(text))
	}
	if _, bare := err.(grpcStatus); bare { // a bare status has its own text, a wrapped one its wrapper's
		text = st.Message()
	}
	p := st.Proto()
	p.Message = cleanText(text)
	return status.FromProto(p).Err()
}

// CodeOf is the code that ToStatus gives err; OK for nil.
func CodeOf(err error) codes.Code {
	if err == nil {
		return codes.OK
	}
	code, _ := find(err)
	return code
}

// FromStatus turns the error of a gRPC call into one whose text is the peer's
// alone, whose code status.Code and CodeOf read, and which is the context's
// error (errors.Is) when the code is Canceled or DeadlineExceeded. Errors that
// are no statuses are returned as they are.
func FromStatus(err error) error {
	if err == nil {
		return nil
	}
	st, ok := status.FromError(err)
	if !ok || st.Code() == codes.OK {
		return err
	}
	return &remote{st}
}

// remote is what another node answered.
type remote struct{ st *status.Status }

func (r *remote) Error() string {
	if r.st.Message() == "" {
		return r.st.Code().String()
	}
	return r.st.Message()
}

func (r *remote) GRPCStatus() *status.Status { return r.st }

func (r *remote) Is(target error) bool {
	switch r.st.Code() {
	case codes.Canceled:
		return target == context.Canceled
	case codes.DeadlineExceeded:
		return target == context.DeadlineExceeded
	}
	return false
}

type grpcStatus interface{ GRPCStatus() *status.Status }

// find walks err's tree as errors.As does, and stops at the first error that
// has a code. It returns the status only if it was one.
func find(err error) (codes.Code, *status.Status) {
	code, st, ok := search(err)
	if !ok {
		return codes.Internal, nil
	}
	return code, st
}

func search(err error) (codes.Code, *status.Status, bool) {
	for err != nil {
		switch e := err.(type) { //nolint:errorlint // this is the walk
		case Coder:
			return e.Code(), nil, true
		case grpcStatus:
			if st := e.GRPCStatus(); st != nil && st.Code() != codes.OK {
				return st.Code(), st, true
			}
		}
		switch err { //nolint:errorlint // this is the walk
		case context.Canceled:
			return codes.Canceled, nil, true
		case context.DeadlineExceeded:
			return codes.DeadlineExceeded, nil, true
		}
		if many, ok := err.(interface{ Unwrap() []error }); ok { // this is the walk
			for _, e := range many.Unwrap() {
				if code, st, ok := search(e); ok {
					return code, st, true
				}
			}
			return 0, nil, false
		}
		err = errors.Unwrap(err)
	}
	return 0, nil, false
}

// cleanText makes text fit for a protobuf string and for a header: the paths
// and outputs that it may quote are not always UTF-8.
func cleanText(text string) string {
	if len(text) > maxText {
		cut := maxText
		for cut > 0 && !utf8.RuneStart(text[cut]) {
			cut--
		}
		text = text[:cut] + "..."
	}
	return strings.ToValidUTF8(text, "\uFFFD")
}

// answerError is the error that a call's answer carries.
func answerError(a *pb.Answer) error {
	return &remote{status.New(codes.Code(a.Code), a.Message)}
}
