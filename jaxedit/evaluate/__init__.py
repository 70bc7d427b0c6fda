"""Does a model, edited or not, say what it should."""
