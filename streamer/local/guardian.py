"""The process that outlives the stack's owner by a few seconds, to end every child it left behind."""

from __future__ import annotations

import json
import os
import select
import signal
import sys

from streamer.local.processes import Identity, end

# Asked at once, made to after this; with the sweep that follows it stays below 10 s.
GRACE_S = 5.0
_LOOK_S = 0.5


def watch(owner: int, marker: str) -> None:
    """Read identities of children from standard input, a JSON object a line, until the owner is gone; end them.

    The pipe closes when the owner ends, however it does. A copy of the pipe that a fork of the owner
    kept open would hide that, so the parent's pid is looked at too.

    Parameters
    ----------
    owner : the pid of the process that started this one.
    marker : what the environment of the children, and of theirs, carries.
    """
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    pipe = sys.stdin.fileno()
    told = b""
    while True:
        # Looked at before the pipe is: what the owner wrote is read to its end even if it went first.
        gone = os.getppid() != owner
        if select.select([pipe], [], [], 0 if gone else _LOOK_S)[0]:
            chunk = os.read(pipe, 65_536)
            told += chunk
            gone = not chunk
        if gone:
            break
    # A line that the owner did not finish is of a child that has not begun, and never will.
    children = [Identity(**json.loads(line)) for line in told.split(b"\n")[:-1]]
    end(children, marker, grace_s=GRACE_S)


if __name__ == "__main__":
    watch(int(sys.argv[1]), sys.argv[2])
