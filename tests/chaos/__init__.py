"""The whole replay under kill -9, pauses and garbage, and a count of what came out: `make chaos`."""
