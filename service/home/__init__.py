"""What a set of studies leaves on disk or in a bucket."""
