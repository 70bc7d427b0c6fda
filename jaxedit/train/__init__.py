"""Training: one loop for everything that is learned by steps."""
