"""The Ray cluster: connecting to it, what fits on it, and studies that run there as jobs."""
