"""Generalization bounds: a model trained in a small subspace, its code in bytes, what it proves."""
