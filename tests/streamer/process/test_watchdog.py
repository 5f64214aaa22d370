"""The watchdog ends a process that stands still, whatever holds its interpreter, and lets the others be."""

from __future__ import annotations

import subprocess
import sys

# `PyDLL` keeps the interpreter's lock while it waits, as a native call does that hangs: no thread of Python's goes on.
_STUCK = "import ctypes; ctypes.PyDLL(None).sleep(30)"


def run(*lines: str) -> subprocess.CompletedProcess[str]:
    program = "\n".join(("import time", "from streamer.process.watchdog import Watchdog", "dog = Watchdog()", *lines))
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=False)


def test_a_process_whose_interpreter_stands_still_ends_and_says_where() -> None:
    for armed in ("dog.put_off(0.3)", "dog.leave_within(0.3)"):
        ended = run(armed, _STUCK)
        assert ended.returncode == 1
        assert "Timeout (0:00:00.300000)!" in ended.stderr
        assert '"<string>", line 5 in <module>' in ended.stderr


def test_one_that_puts_it_off_in_time_goes_on() -> None:
    ended = run("for _ in range(8): dog.put_off(0.5); time.sleep(0.1)", "print('through')")
    assert (ended.returncode, ended.stdout) == (0, "through\n")


def test_one_that_is_to_leave_cannot_put_it_off() -> None:
    ended = run("dog.leave_within(0.3)", "dog.put_off(30); dog.leave_within(30)", "time.sleep(10)")
    assert ended.returncode == 1
