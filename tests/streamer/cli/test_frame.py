"""The command line as a whole: its commands in order, errors as one line and a code, extensions loaded by name."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import confluent_kafka
import pytest
import redis
import typer

from streamer.cli import frame
from streamer.cli.failures import CommandError, explain
from streamer.commands import CommandTimeout
from streamer.settings import ConfigError
from tests.streamer.cli.conftest import Run


def brings(monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    point = EntryPoint("extra", target, frame.EXTENSIONS)
    monkeypatch.setattr(frame, "_extensions", lambda: {"extra": point})


def test_help_lists_every_command_in_reading_order(run: Run) -> None:
    listed = [
        word
        for line in run("--help").output.splitlines()
        for word in line.strip("│ ").split()[:1]
        if word in frame.ORDER
    ]
    assert listed == list(frame.ORDER)


def test_help_fits_a_narrow_terminal(run: Run) -> None:
    for words in ([], ["models"], ["reference", "build"], ["worker"], ["replay"]):
        assert max(map(len, run(*words, "--help", COLUMNS="80").output.splitlines())) <= 80


def test_the_version_is_told(run: Run) -> None:
    result = run("--version")
    assert (result.exit_code, result.output.split()[0]) == (0, "driftloop")


@pytest.mark.parametrize(
    "words", [["nonsense"], ["models", "show"], ["worker", "--role", "boss"], ["replay"], ["dev", "--parts", "x"]]
)
def test_wrong_usage_is_code_2(run: Run, words: list[str]) -> None:
    assert run(*words).exit_code == 2


def test_a_wrong_configuration_names_the_key(run: Run) -> None:
    result = run("status", DRIFTLOOP_INTERNAL_PARTITIONS="none")
    assert result.exit_code == 1
    assert result.stderr.startswith("driftloop: DRIFTLOOP_INTERNAL_PARTITIONS: internal_partitions: got 'none'")


@pytest.mark.parametrize(
    "words",
    [["status"], ["status", "m", "--json"], ["watch", "--times", "1"], ["split", "m"], ["rollback", "m"]],
)
def test_without_redis_every_command_says_so_with_the_address(run: Run, words: list[str]) -> None:
    result = run(*words)
    assert result.exit_code == 3
    assert result.stderr.startswith("driftloop: Redis at redis://127.0.0.1:9/0 does not answer")
    assert result.stdout == ""


@pytest.mark.parametrize(
    "words",
    [
        ["topics", "create"],
        ["topics", "check"],
        ["models", "list"],
        ["models", "allow", "m", "--for", "1d"],
        ["request", "m", "--reason", "r"],
        ["ledger", "m"],
        ["dead-letters", "list"],
        ["recount"],
        ["worker"],
        ["replay", "--rebuild-join"],
    ],
)
def test_without_kafka_every_command_says_so_with_the_address(
    run: Run, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamer.cli.surroundings.PATIENCE_S", 0.3)
    result = run(*words)
    assert result.exit_code == 3
    assert result.stderr.startswith("driftloop: Kafka at 127.0.0.1:9 does not answer")


def test_a_local_stack_that_was_stopped_is_thought_of(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamer.cli.surroundings.PATIENCE_S", 0.3)
    for name in ("DRIFTLOOP_KAFKA", "DRIFTLOOP_REDIS__URL"):
        monkeypatch.delenv(name)
    Path("driftloop.toml").write_text(
        '[kafka]\n"bootstrap.servers" = "127.0.0.1:9"\n[redis]\nurl = "redis://127.0.0.1:9/0"\n', encoding="utf-8"
    )
    monkeypatch.setenv("DRIFTLOOP_CONFIG", "driftloop.toml")
    for words in (["status"], ["models", "list"]):
        assert "driftloop dev" not in run(*words).stderr
    Path(".driftloop").mkdir()
    for words in (["status"], ["models", "list"]):
        assert "started here is stopped: driftloop dev starts it again" in run(*words).stderr
        assert "driftloop dev" not in run(*words, DRIFTLOOP_KAFKA='{"bootstrap.servers": "127.0.0.1:9"}').stderr


def test_a_password_is_never_shown(run: Run) -> None:
    result = run("status", DRIFTLOOP_REDIS__URL="redis://me:secret@127.0.0.1:9/0")
    assert "redis://me:***@127.0.0.1:9/0" in result.stderr
    assert "secret" not in result.output


def test_foreseen_errors_have_their_codes() -> None:
    gone = confluent_kafka.KafkaError(confluent_kafka.KafkaError._TRANSPORT)
    refused = confluent_kafka.KafkaError(confluent_kafka.KafkaError.TOPIC_AUTHORIZATION_FAILED)
    expected: list[tuple[Exception, int]] = [
        (CommandError("no", code=2), 2),
        (ConfigError("key"), 1),
        (CommandTimeout("late"), 3),
        (redis.exceptions.TimeoutError("slow"), 3),
        (redis.exceptions.ResponseError("wrong"), 1),
        (redis.exceptions.AuthenticationError("invalid username-password pair"), 3),
        (confluent_kafka.KafkaException(gone), 3),
        (confluent_kafka.KafkaException(refused), 3),
        (FileNotFoundError(2, "No such file", "x.jsonl"), 1),
        (ModuleNotFoundError("no", name="psutil"), 1),
    ]
    for error, code in expected:
        found = explain(error)
        assert found is not None
        assert found[1] == code
        assert "\n" not in found[0]
    assert explain(ValueError("ours")) is None


def test_a_fault_of_our_own_is_a_line_and_code_1_and_shows_where_when_asked(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise ValueError("a bug")

    monkeypatch.setattr("streamer.cli.status.settings", broken)
    result = run("status")
    assert result.exit_code == 1
    assert result.stderr.startswith("driftloop: a fault of driftloop's own: ValueError: a bug; DRIFTLOOP_TRACEBACK=1")
    assert isinstance(run("status", DRIFTLOOP_TRACEBACK="1").exception, ValueError)


def hello(name: str = "you") -> None:
    """Greet."""
    typer.echo(f"hello {name}")


greeter = typer.Typer()
greeter.command()(hello)
ready = typer.main.get_command(greeter)


@pytest.mark.parametrize("attribute", ["hello", "greeter", "ready"])
def test_an_extension_may_be_a_function_an_application_or_a_command(
    run: Run, attribute: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "greetings", sys.modules[__name__])
    brings(monkeypatch, f"greetings:{attribute}")
    assert run("extra", "--name", "me").output == "hello me\n"
    assert "Greet." in run("--help").output


def test_an_extension_whose_packages_are_missing_says_what_to_install(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    brings(monkeypatch, "not_installed_at_all:command")
    result = run("extra", "--anything")
    assert result.exit_code == 1
    assert "not_installed_at_all is not installed; pip install 'driftloop[extra]'" in result.stderr
    assert run("--help").exit_code == 0


def test_an_extension_that_breaks_takes_no_other_command_with_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    brings(monkeypatch, "streamer.cli.frame:not_there")
    result = run("extra")
    assert result.exit_code == 1
    assert "extra: cannot be loaded: AttributeError" in result.stderr
    assert run("--help").exit_code == 0


def test_the_module_runs_as_the_command_does() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "streamer.cli", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("driftloop ")


def test_starting_up_loads_nothing_heavy() -> None:
    code = (
        "import sys; from streamer.cli.frame import build; build(); "
        "heavy = {'scipy', 'polars', 'confluent_kafka', 'faust', 'mlflow', 'airflow'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_measurements_are_run_in_a_checkout_only(run: Run, tmp_path: Path) -> None:
    missing = run("bench")
    assert (missing.exit_code, "run this in a checkout of the repository" in missing.stderr) == (1, True)
    (tmp_path / "benchmarks").mkdir()
    # A package of its own, so that it goes before the checkout's.
    (tmp_path / "benchmarks" / "__init__.py").touch()
    (tmp_path / "benchmarks" / "__main__.py").write_text("import sys; sys.exit(sys.argv[1:] != ['--quick', '--help'])")
    assert run("bench", "--quick", "--help").exit_code == 0
    assert run("bench", "--slow").exit_code == 1
