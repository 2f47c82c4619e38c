#!/bin/sh
# Generates classifierv1/ from the proto into the folder given, which is the module `classifier-example`.
# Needs protoc, protoc-gen-go and protoc-gen-go-grpc on the PATH.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
into=${1:-$here}
map=Mclassifier/v1/classifier.proto=classifier-example/classifierv1
${PROTOC:-protoc} -I "$here/../../../proto" \
    --go_out="$into" --go_opt=module=classifier-example --go_opt="$map" \
    --go-grpc_out="$into" --go-grpc_opt=module=classifier-example --go-grpc_opt="$map" \
    classifier/v1/classifier.proto
