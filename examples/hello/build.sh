#!/bin/sh
# Builds the application and puts it into an image archive, with nothing but
# Go and tar: a docker archive is a layer, a configuration and a manifest.
# usage: build.sh OUTPUT.tar [NAME:TAG]
set -eu
out=${1:?usage: build.sh OUTPUT.tar [NAME:TAG]}
name=${2:-hello:1}
here=$(cd "$(dirname "$0")" && pwd -P)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mkdir "$work/layer"
(cd "$here" && CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$work/layer/hello" .)
tar -C "$work/layer" --owner=0 --group=0 --mtime=@0 -cf "$work/layer.tar" hello
digest=$(sha256sum "$work/layer.tar" | cut -d' ' -f1)
arch=$(go env GOARCH)
cat >"$work/config.json" <<JSON
{"architecture":"$arch","os":"linux",
 "config":{"Entrypoint":["/hello"],"User":"65532:65532"},
 "rootfs":{"type":"layers","diff_ids":["sha256:$digest"]}}
JSON
cat >"$work/manifest.json" <<JSON
[{"Config":"config.json","RepoTags":["docker.io/library/$name"],"Layers":["layer.tar"]}]
JSON
tar -C "$work" -cf "$out" manifest.json config.json layer.tar
echo "$out holds $name"
