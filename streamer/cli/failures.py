"""What a command that could not do its work says, in one line, and the exit code it leaves with."""

from __future__ import annotations

from streamer.addresses import without_password

FAILED = 1
USAGE = 2
UNREACHABLE = 3
STACK_STOPPED = ". The local stack that was started here is stopped: driftloop dev starts it again"

# librdkafka's codes for "nobody is there", by name since the module is loaded only where it is used.
_KAFKA_GONE = frozenset(
    {"_TRANSPORT", "_ALL_BROKERS_DOWN", "_TIMED_OUT", "_RESOLVE", "_TIMED_OUT_QUEUE", "_MSG_TIMED_OUT", "_FATAL"}
)


class CommandError(Exception):
    """A command has done what it could and the answer is no; the message is the whole explanation."""

    def __init__(self, message: str, *, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code


def explain(error: BaseException) -> tuple[str, int] | None:
    """Return the line and the exit code for a foreseen error, or None for one that is a fault of ours."""
    for reader in (_ours, _redis, _kafka, _installation, _file):
        found = reader(error)
        if found is not None:
            message, code = found
            return (message + STACK_STOPPED, code) if code == UNREACHABLE and _stack_is_stopped() else found
    return None


def _stack_is_stopped() -> bool:
    """Whether a local stack has been here and would be what a command talks to, had it not been stopped."""
    from streamer.cli.surroundings import STACK_DIRECTORY, gives_no_address, stack_environment

    if not STACK_DIRECTORY.is_dir() or not gives_no_address() or stack_environment(STACK_DIRECTORY):
        return False
    return _address("kafka").startswith(("127.0.0.1:", "localhost:"))


def _ours(error: BaseException) -> tuple[str, int] | None:
    if isinstance(error, CommandError):
        return str(error), error.code
    if type(error).__module__.partition(".")[0] not in {"streamer", "monitors", "dags", "demo"}:
        return None
    # A worker that does not answer is a dependency too: the same command may work in a minute.
    away = type(error).__name__ in {"CommandTimeout", "Unreachable"} or _kafka_lacks_right(error.__cause__)
    return str(error), UNREACHABLE if away else FAILED


def _redis(error: BaseException) -> tuple[str, int] | None:
    import redis.exceptions

    if not isinstance(error, redis.exceptions.RedisError):
        return None
    from streamer.cli.surroundings import settings
    from streamer.redis_clients import refusal

    refused = refusal(error, settings().redis.url)
    if refused is not None:
        return refused, UNREACHABLE
    if isinstance(error, redis.exceptions.ConnectionError | redis.exceptions.TimeoutError):
        return (
            f"Redis at {_address('redis')} does not answer ({_first_line(error)}); "
            "start it, or set redis.url in the configuration or DRIFTLOOP_REDIS__URL",
            UNREACHABLE,
        )
    return f"Redis at {_address('redis')} refused: {_first_line(error)}", FAILED


def _kafka(error: BaseException) -> tuple[str, int] | None:
    if type(error).__name__ not in {"KafkaException", "KafkaError", "ProduceError", "ConsumeError"}:
        return None
    reason = error.args[0] if error.args else error
    name = reason.name() if hasattr(reason, "name") else ""
    text = reason.str() if hasattr(reason, "str") else _first_line(error)
    if name in _KAFKA_GONE:
        return (
            f"Kafka at {_address('kafka')} does not answer ({text}); "
            'start it, or set kafka."bootstrap.servers" in the configuration or DRIFTLOOP_KAFKA',
            UNREACHABLE,
        )
    return f"Kafka at {_address('kafka')} refused: {text}", UNREACHABLE if _kafka_lacks_right(error) else FAILED


def _kafka_lacks_right(error: BaseException | None) -> bool:
    reason = error.args[0] if error is not None and error.args else error
    return hasattr(reason, "name") and str(reason.name()).endswith("AUTHORIZATION_FAILED")  # type: ignore[union-attr]


def _installation(error: BaseException) -> tuple[str, int] | None:
    if not isinstance(error, ModuleNotFoundError):
        return None
    return (
        f"{error.name} is not installed; this command needs more than is here: "
        "pip install 'driftloop[worker]' for workers, 'driftloop[local]' for `dev`, 'driftloop[demo]' for `demo`",
        FAILED,
    )


def _file(error: BaseException) -> tuple[str, int] | None:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}", FAILED
    return None


def _address(what: str) -> str:
    from streamer.cli.surroundings import settings

    found = settings()
    return without_password(found.redis.url) if what == "redis" else found.kafka.bootstrap_servers


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
