"""Measurements: each writes one file into bench/results, from which the tables of docs/performance.md are made."""
