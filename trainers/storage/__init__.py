"""Files that survive a crash whole, on disk and in a bucket."""
