#!/bin/sh
# Secrets come as files, and not every program reads one: a variable NAME_FILE that leads to a secret becomes NAME with
# its content, as in the image of Postgres. Then the command, in this process.
set -eu
for name in $(env | sed -n 's|^\([A-Z][A-Z0-9_]*\)_FILE=.*/secrets/.*|\1|p'); do
    eval "path=\$${name}_FILE"
    value=$(cat "$path")
    export "$name=$value"
    unset "${name}_FILE"
done
exec "$@"
