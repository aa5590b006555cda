"""One command a file: what it prints and exits with; the work itself is done elsewhere."""
