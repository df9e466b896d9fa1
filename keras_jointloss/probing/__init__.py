"""Measures the terms of a model before it trains, judges them and proposes weights."""
