"""Decisions: `decide(snapshot, memory)` says what should happen and why.

Pure: no clock, no network, no randomness.  Times are seconds on a clock that the caller passes in; ages count
backwards from the moment of the snapshot.
"""
