"""`python -m streamer.cli`, the same as `driftloop`."""

from __future__ import annotations

from streamer.cli import main

main()
