"""Models as pure functions: configuration, weights, sites, the forward pass, generation."""
