"""The service's configuration: TOML, then environment, typed and validated; a wrong key is an error that names it."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from streamer.addresses import checked_redis_url
from streamer.durations import Duration
from streamer.telemetry import redact

DEFAULT_CONFIG = Path("config/driftloop.toml")
Namespace = Annotated[str, StringConstraints(pattern=r"^[a-z0-9._-]{0,50}$")]


class ConfigError(Exception):
    """The configuration cannot be used; the message says which file, key and value, and what is allowed."""


RedisUrl = Annotated[str, AfterValidator(checked_redis_url)]


# What is read elsewhere: by the command line, the embedded stack and docker-compose.yaml.
_OTHER_VARIABLES = frozenset(
    {"CONFIG", "CACHE", "STACK", "TRACEBACK", "POSTGRES_PASSWORD", "AIRFLOW_SECRET", "AIRFLOW_FERNET_KEY"}
)


class Section(BaseModel):
    """A table of the configuration: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class KafkaSettings(BaseModel):
    """Any property of Kafka's own clients, by Kafka's own name, passed through to every client."""

    model_config = ConfigDict(extra="allow", frozen=True)

    bootstrap_servers: str = Field("127.0.0.1:9092", alias="bootstrap.servers")

    def properties(self) -> dict[str, str]:
        """Return the properties by Kafka's dotted names, as text."""
        extra = {name: str(value) for name, value in (self.__pydantic_extra__ or {}).items()}
        return {"bootstrap.servers": self.bootstrap_servers, **extra}


class RedisSettings(Section):
    """Where the live view lives and, where it is another server, the label-join store; who asks, and TLS's files.

    User, password and files are those of both addresses; an address that has its own keeps them.
    """

    url: RedisUrl = "redis://127.0.0.1:6379/0"
    # An empty variable of the environment is none.
    join_url: Annotated[RedisUrl | None, BeforeValidator(lambda url: url or None)] = None
    username: str | None = None
    password: SecretStr | None = None
    ssl_ca_certs: Path | None = None
    ssl_certfile: Path | None = None
    ssl_keyfile: Path | None = None

    @model_validator(mode="after")
    def _tls_has_an_address_for_it(self) -> Self:
        """Refuse TLS's files where nothing is encrypted: whoever gave them believes that it is."""
        given = [name for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile") if getattr(self, name) is not None]
        if given and not any((url or "").startswith("rediss://") for url in (self.url, self.join_url)):
            raise ValueError(f"{given[0]} is given, but no address is encrypted; wanted rediss:// in url or join_url")
        return self


class TopicSettings(Section):
    """How one topic is made: partitions, and how long or how it is kept."""

    partitions: int | None = Field(None, ge=1)
    retention: Duration | None = None
    replicas: int | None = Field(None, ge=1)


class WorkerSettings(Section):
    """The stream worker: who it is, how often it flushes and commits."""

    replica: str = "0"
    flush_ms: int = Field(500, ge=10)
    flush_rows: int = Field(50_000, ge=1)
    commit_ms: int = Field(5_000, ge=10)
    commit_bytes: int = Field(32_000_000, ge=1_000)
    view_ms: int = Field(500, ge=50)
    view_share: float = Field(0.01, gt=0, le=1)
    tick_ms: int = Field(5_000, ge=50)
    web_host: str = "127.0.0.1"
    web_port: int = Field(6066, ge=0, le=65535)
    data_dir: Path = Path(".driftloop/worker")
    max_future_ms: Duration = Duration.parse("1d")


class LabelStoreSettings(Section):
    """The label-join store: its buckets are fixed for a namespace, and it keeps records `hold` beyond their horizon."""

    join_buckets: int = Field(64, ge=1, le=4096)
    wait_aof: bool = True
    hold: Duration = Duration.parse("6h")


class DeadLetterSettings(Section):
    """Whether dead letters keep the bytes that came, or only what was wrong with them."""

    mode: Literal["raw", "redacted"] = "raw"


class SdkSettings(Section):
    """What `Client.from_environment` takes beside the addresses; read there, without pydantic, and checked here."""

    transport: Literal["kafka-python", "librdkafka"] = "kafka-python"
    queue_size: int = Field(100_000, ge=1)
    spool: Path | None = None
    spool_bytes: int = Field(256_000_000, ge=10_000_000)


class MlflowSettings(Section):
    """MLflow's addresses, as MLflow itself takes them."""

    tracking_uri: str = "http://127.0.0.1:5000"
    registry_uri: str | None = None
    experiment: str = "driftloop"
    artifact_root: str | None = None


class AirflowSettings(Section):
    """Where Airflow's pages are, for links, where a retraining keeps its files, and whose code may load its rows.

    Tasks hand one another paths under `work_dir`: with workers on several machines it lies on a disk they share.
    `loaders` are the packages a model's `retrain.loader` may be in: that name comes from a topic, and is imported.
    """

    url: str = "http://127.0.0.1:8080"
    work_dir: Path = Path(".driftloop/retrain")
    loaders: tuple[str, ...] = ()


class Settings(BaseSettings):
    """The whole service's configuration (see config/driftloop.toml).

    A key may be overridden by the environment: DRIFTLOOP_REDIS__URL, and for Kafka's dotted names
    DRIFTLOOP_KAFKA as JSON.
    """

    model_config = SettingsConfigDict(
        env_prefix="DRIFTLOOP_", env_nested_delimiter="__", extra="forbid", frozen=True, populate_by_name=True
    )

    namespace: Namespace = ""
    internal_partitions: int = Field(16, ge=1, le=512)
    kafka: KafkaSettings = KafkaSettings()
    redis: RedisSettings = RedisSettings()
    topics: dict[str, TopicSettings] = {}
    worker: WorkerSettings = WorkerSettings()
    labels: LabelStoreSettings = LabelStoreSettings()
    dead_letters: DeadLetterSettings = DeadLetterSettings()
    sdk: SdkSettings = SdkSettings()
    mlflow: MlflowSettings = MlflowSettings()
    airflow: AirflowSettings = AirflowSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment first, then the file named by DRIFTLOOP_CONFIG."""
        path = config_path()
        toml = (TomlConfigSettingsSource(settings_cls, path),) if path else ()
        return (init_settings, env_settings, *toml)

    def topic(self, name: str) -> str:
        """Return a topic's full name, namespace included: `topic("predictions")`."""
        return f"{self.namespace}.{name}.v1" if self.namespace else f"{name}.v1"


def config_path() -> Path | None:
    """Return the configuration file in force: DRIFTLOOP_CONFIG, else config/driftloop.toml, else none."""
    named = os.environ.get("DRIFTLOOP_CONFIG")
    if named:
        path = Path(named)
        if not path.is_file():
            raise ConfigError(f"DRIFTLOOP_CONFIG names {path}, which is not a file; unset it or give a TOML file")
        return path
    return DEFAULT_CONFIG if DEFAULT_CONFIG.is_file() else None


def load_settings() -> Settings:
    """Read the configuration in force.

    Raises
    ------
    ConfigError
        Naming the file, the key, the value, and what is allowed.
    """
    path = config_path()
    # No cause is chained: pydantic's own errors write out what came, passwords included.
    try:
        return Settings()
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    except SettingsError as error:
        raise ConfigError(_not_json(error)) from None
    except ValidationError as error:
        raise ConfigError(explain(error, lambda key: _variable(key) or str(path or "environment"))) from None


def unknown_variables(names: Iterable[str]) -> dict[str, str]:
    """Return the variables that begin with DRIFTLOOP_ and that nothing reads, each with the likeliest one meant, or "".

    A misspelt key within a section is an error of `load_settings`; a misspelt section is nothing to pydantic.
    """
    sections = {name.upper(): field.annotation for name, field in Settings.model_fields.items()}
    keys = {
        f"{name}__{key.upper()}"
        for name, section in sections.items()
        if isinstance(section, type) and issubclass(section, Section)
        for key in section.model_fields
    }
    right = {*sections, *keys, *_OTHER_VARIABLES}
    found = {}
    for name in names:
        prefix, _, given = name.upper().partition("_")
        if prefix == "DRIFTLOOP" and given not in right and given.partition("__")[0] not in sections:
            found[name] = "".join(f"DRIFTLOOP_{meant}" for meant in difflib.get_close_matches(given, right, n=1))
    return found


def explain(error: ValidationError, source: str | Callable[[tuple[int | str, ...]], str]) -> str:
    """Turn a validation error into a line a fault: the file, the key, what came (no secrets), what was wanted.

    Parameters
    ----------
    source : the file, or what gives the source of a key.
    """
    lines = []
    for fault in error.errors():
        where = source if isinstance(source, str) else source(fault["loc"])
        key = ".".join(str(part) for part in fault["loc"]) or "(the whole file)"
        came = _shown(fault["input"], fault["loc"])
        if fault["type"] == "extra_forbidden":
            lines.append(f"{where}: {key}: unknown key (value {came}); remove it or check its spelling")
        elif fault["type"] == "missing":
            lines.append(f"{where}: {key}: missing; it must be given")
        elif fault["type"] in ("model_type", "dict_type"):
            # Whatever stands in place of a table may hold that table's passwords.
            lines.append(
                f"{where}: {key}: got one value of type {type(fault['input']).__name__}, wanted a table: [{key}]"
            )
        else:
            lines.append(f"{where}: {key}: got {came}: {fault['msg']}")
    return "\n".join(lines)


def _variable(key: tuple[int | str, ...]) -> str | None:
    """Return the variable of the environment that gives a key or one of the tables it stands in, if one does."""
    given = {name.upper() for name in os.environ}
    for depth in range(len(key), 0, -1):
        name = f"DRIFTLOOP_{'__'.join(str(part) for part in key[:depth])}".upper()
        if name in given:
            return name
    return None


def _shown(value: Any, loc: tuple[int | str, ...]) -> str:
    """Return a value as a message may show it: hidden where a name on its path speaks of a secret."""
    for name in loc:
        value = redact(value, str(name))
    if isinstance(value, str) and "@" in value:
        # Of an address that is none as well: one without a scheme, or with a "/" in its password.
        scheme, found, _ = value.rpartition("@")[0].partition("://")
        value = f"{scheme + found if found else ''}***@{value.rpartition('@')[2]}"
    return repr(value)


def _not_json(error: SettingsError) -> str:
    """Return which variable holds no JSON, and where it stops being any; never what it holds."""
    field = re.search(r'field "(\w+)"', str(error))
    name = f"DRIFTLOOP_{field[1].upper()}" if field else "a DRIFTLOOP_… variable"
    why = f" ({error.__cause__})" if error.__cause__ is not None else ""
    return f'{name}: not valid JSON{why}; wanted an object such as {{"key": "value"}}'
