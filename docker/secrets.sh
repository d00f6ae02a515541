#!/bin/sh
# Creates the missing secrets of compose.yaml in docker/secrets. Only you can enter the folder, but the files themselves
# are world-readable, because containers run as a different user.
set -eu
folder=$(dirname "$0")/secrets
mkdir -p "$folder"
chmod 700 "$folder"
for name in ray-token postgres-password mlflow-password mlflow-key; do
    [ -s "$folder/$name" ] || od -An -N32 -tx1 /dev/urandom | tr -d ' \n' > "$folder/$name"
    chmod 644 "$folder/$name"
done
