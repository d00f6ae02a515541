"""A command as the trainer: its processes, its output, and the trial that runs it."""
