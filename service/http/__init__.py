"""``oec serve``: studies over HTTP. All state is in the home and in Ray's job API, so several may serve one home."""
