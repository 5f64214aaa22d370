"""Streams with a known answer through faults of everything, and what came out held against the log: `make chaos`."""
