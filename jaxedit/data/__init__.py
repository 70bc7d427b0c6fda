"""Text: edit requests and their probes, a world with known truth, published datasets, corpora."""
