"""How long models stand still when their worker is killed: until another takes over, and until it is back itself."""

from __future__ import annotations

import sys
import threading
import time
from typing import Annotated

import psutil
import typer

from benchmarks import measuring, traffic
from benchmarks.figures import Curve, Figure, figure
from benchmarks.pacer import pace_of, pacing
from streamer.local.stack import Stack
from streamer.local.worker import DEFAULT_COMMAND
from streamer.view import LiveView

_RATE = 5_000
_MODELS = 32
_WARM_S = 10.0
_WITHIN_S = 60.0
_POLL_S = 0.02
_COMMAND = "make bench ARGS='--only rebalance'"
# A worker that is killed is not started again: its supervisor is told that it has ended well.
_ONCE = ("/bin/sh", "-c", '"$0" "$@"; exit 0', sys.executable, "-m", "streamer.cli", "worker")


def register(app: typer.Typer) -> None:
    """Add `rebalance` to the command line."""
    app.command("rebalance")(rebalance)


def rebalance(rate: Annotated[int, typer.Option(help="Predictions a second meanwhile.", min=1)] = _RATE) -> None:
    """Kill one of two workers, then the only one, and measure how long models stand still."""
    for each in _measure(rate):
        print(f"{each.name}: {each.value:.1f} {each.unit} {each.note}")


def figures(*, quick: bool) -> tuple[list[Figure], list[Curve]]:
    """Measure both; there is no shorter form."""
    return _measure(_RATE), []


class _Standing(threading.Thread):
    """Watches every model's count in the live view.

    Attributes
    ----------
    moved : model → when its count last changed. longest_s : model → the longest time it stood still.
    """

    def __init__(self, view: LiveView) -> None:
        super().__init__(name="standing", daemon=True)
        self._view = view
        self._stop_now = threading.Event()
        self._counts: dict[str, int] = {}
        self.moved: dict[str, float] = {}
        self.longest_s: dict[str, float] = {}

    def run(self) -> None:
        while not self._stop_now.wait(_POLL_S):
            now = time.monotonic()
            for summary in self._view.models():
                if self._counts.get(summary.model) != summary.n:
                    before = self.moved.get(summary.model, now)
                    self.longest_s[summary.model] = max(self.longest_s.get(summary.model, 0.0), now - before)
                    self._counts[summary.model] = summary.n or 0
                    self.moved[summary.model] = now

    def begin(self) -> None:
        """Forget how long models have stood still so far."""
        self.longest_s = {}

    def all_moved_since(self, moment: float) -> bool:
        """Tell whether every model has been counted on after a moment."""
        return len(self.moved) == _MODELS and min(self.moved.values()) > moment

    def end(self) -> None:
        """Watch no more."""
        self._stop_now.set()
        self.join()


def _measure(rate: int) -> list[Figure]:
    survivor, others, moved = _one_of_two(rate)
    back, caught_up = _the_only_one(rate)
    note = f"{moved} of {_MODELS} models were its own; the survivor's own stood still for {others:.1f} s at most"
    return [
        figure("one of two workers killed: its models stand still", survivor, "s", command=_COMMAND, note=note),
        figure("the only worker killed: its models stand still", back, "s", command=_COMMAND, note=f"at {rate:,}/s"),
        figure("the only worker killed, start → caught up", caught_up, "s", at_most=10.0, command=_COMMAND),
    ]


def _one_of_two(rate: int) -> tuple[float, float, int]:
    """Return how long the models of a killed worker stood still, those of the other, and how many its models were."""
    with measuring.running(commands=[DEFAULT_COMMAND, _ONCE]) as stack:
        _prepare(stack)
        with pacing(stack, pace_of(stack, rate=rate, seconds=600, models=_MODELS)):
            standing = _watched(stack)
            (victim,) = measuring.workers(stack)[1].children()
            victim.kill()
            killed = time.monotonic()
            standing.begin()
            # Long enough that the survivor, which does not know yet, has counted its own again.
            time.sleep(3.0)
            still = {name for name, moved in standing.moved.items() if moved < killed + 1.5}
            _until_moving(standing, killed + 3.0, "the dead worker's models are not taken over")
            standing.end()
    longest = standing.longest_s
    own = [seconds for name, seconds in longest.items() if name in still]
    rest = [seconds for name, seconds in longest.items() if name not in still]
    return max(own, default=0.0), max(rest, default=0.0), len(still)


def _the_only_one(rate: int) -> tuple[float, float]:
    """Return how long models stand still when the only worker is killed, and its time from its start to the end."""
    with measuring.running() as stack:
        _prepare(stack)
        with pacing(stack, pace_of(stack, rate=rate, seconds=600, models=_MODELS)) as pacer:
            standing = _watched(stack)
            (victim,) = measuring.workers(stack)
            victim.kill()
            killed = time.monotonic()
            standing.begin()
            measuring.until(lambda: _started_after(stack, victim), "the worker is not started again", within_s=20)
            (fresh,) = measuring.workers(stack)
            started = time.monotonic() - (time.time() - fresh.create_time())
            _until_moving(standing, killed + 0.5, "the restarted worker does not count")
            view = measuring.live_view(stack.settings)

            def caught_up() -> bool:
                # All but what is sent within a flush and a rewrite of the view.
                return measuring.counted(view) > pacer.sent()[-1].events - 2 * rate

            measuring.until(caught_up, "the restarted worker has not caught up", within_s=_WITHIN_S)
            took = time.monotonic() - started
            standing.end()
    return max(standing.longest_s.values()), took


def _prepare(stack: Stack) -> None:
    configs = [traffic.model(index, labels="join") for index in range(_MODELS)]
    measuring.publish_models(stack.settings, configs, int(time.time() * 1000))
    measuring.until_at_rest(measuring.workers(stack))


def _watched(stack: Stack) -> _Standing:
    """Watch the view until all models have been seen moving."""
    standing = _Standing(measuring.live_view(stack.settings))
    standing.start()
    time.sleep(_WARM_S)
    _until_moving(standing, time.monotonic(), "not all models are counted")
    return standing


def _until_moving(standing: _Standing, since: float, otherwise: str) -> None:
    measuring.until(lambda: standing.all_moved_since(since), otherwise, within_s=_WITHIN_S)


def _started_after(stack: Stack, victim: psutil.Process) -> bool:
    return all(child.identity.pid != victim.pid for child in stack.part("worker").children)
