// Package proto is the wire between Remex's own nodes and between its command
// line and a cluster: messages and services, generated from the .proto files
// beside it. It holds no logic. REAPI's own messages are stored and passed on
// as bytes here; only frontend and worker take them apart.
package proto

//go:generate protoc --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative call.proto blob.proto ac.proto work.proto admin.proto
