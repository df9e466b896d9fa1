"""The callback `RetrievalEvaluation`."""
