"""Terms whose targets may be missing."""
