"""What the numbers mean: pure functions and values over arrays; no I/O, no clock, no globals."""
