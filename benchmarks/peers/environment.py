"""A peer's own environment: Quix Streams asks for an older client of Kafka than driftloop's."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

_REQUIREMENTS = Path(__file__).with_name("quix-requirements.txt")
_ROOT = Path(__file__).parents[2] / ".driftloop" / "bench"


def quix_python() -> str:
    """Return an interpreter that has Quix Streams, made with uv where there is none yet.

    Raises
    ------
    RuntimeError
        When uv cannot make it; the message ends with what uv said.
    """
    digest = hashlib.sha256(_REQUIREMENTS.read_bytes() + sys.version.encode()).hexdigest()[:12]
    place = _ROOT / f"quix-{digest}"
    python = place / "bin" / "python"
    made = place / "made"
    if not made.is_file():
        uv = str(Path(sys.executable).parent / "uv")
        _run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(place)])
        _run([uv, "pip", "install", "--quiet", "--python", str(python), "-r", str(_REQUIREMENTS)])
        made.touch()
    return str(python)


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    except OSError as error:
        raise RuntimeError(f"{command[0]}: cannot be run ({error}); run `make setup`") from error
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}: {done.stderr.strip()[-1000:]}")
