"""Many cells: the search for what to train next, and the workers that train it."""
