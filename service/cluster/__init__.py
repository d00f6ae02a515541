"""Ray clusters: connecting to them, how many cells fit on them, and studies that run there as jobs."""
