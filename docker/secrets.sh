#!/bin/sh
# Makes the secrets of compose.yaml that are not there yet, in docker/secrets. Nobody else may enter the folder; the
# files themselves are readable, because a container's user is another one than you.
set -eu
folder=$(dirname "$0")/secrets
mkdir -p "$folder"
chmod 700 "$folder"
for name in ray-token postgres-password mlflow-password mlflow-key; do
    [ -s "$folder/$name" ] || od -An -N32 -tx1 /dev/urandom | tr -d ' \n' > "$folder/$name"
    chmod 644 "$folder/$name"
done
