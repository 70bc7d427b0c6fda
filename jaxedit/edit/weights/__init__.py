"""Methods that change weights, one per file."""
