"""Reports and analyses of what a home holds."""
