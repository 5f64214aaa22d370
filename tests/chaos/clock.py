"""A process whose clock is wrong: `python -m tests.chaos.clock SECONDS ARGUMENT…` is driftloop's command line in it."""

from __future__ import annotations

import sys
import time


def set_fast(seconds: int) -> None:
    """Have Python's clock be fast by so much (slow: negative). What is written in C keeps the machine's."""
    right, right_ns = time.time, time.time_ns
    time.time = lambda: right() + seconds
    time.time_ns = lambda: right_ns() + seconds * 1_000_000_000


if __name__ == "__main__":
    set_fast(int(sys.argv[1]))
    sys.argv[1:2] = []
    from streamer.cli import main

    main()
