#!/bin/sh
# Secrets are mounted as files, but not every program can read a file. For each variable NAME_FILE that points to a
# secret, this script sets NAME to the content, as the image of Postgres does. It then replaces itself with the command.
set -eu
for name in $(env | sed -n 's|^\([A-Z][A-Z0-9_]*\)_FILE=.*/secrets/.*|\1|p'); do
    eval "path=\$${name}_FILE"
    value=$(cat "$path")
    export "$name=$value"
    unset "${name}_FILE"
done
exec "$@"
