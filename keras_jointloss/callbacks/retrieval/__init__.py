"""The callbacks `RetrievalEvaluation` and `KNNEvaluation`."""
