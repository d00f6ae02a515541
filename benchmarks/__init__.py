"""Speed benchmarks, each of which measures ratios within one run: ``python -m benchmarks.NAME``."""
