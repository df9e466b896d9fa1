"""The layer `ContrastiveTerm`."""
