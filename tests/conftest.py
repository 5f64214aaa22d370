"""What holds for all tests: hypothesis does not time, and a machine under load is waited for."""

from __future__ import annotations

from hypothesis import settings

# A test says what holds, not how fast: on a busy machine a first example takes half a second.
settings.register_profile("driftloop", deadline=None)
settings.load_profile("driftloop")
