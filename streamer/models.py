"""A model's configuration: the one TOML file a user writes for each model, typed and validated."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from pydantic import Field, StringConstraints, ValidationError, model_validator

from streamer.durations import Duration
from streamer.events import UNREADABLE
from streamer.explain import is_deep
from streamer.settings import ConfigError, Section, explain

ModelName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9._-]{1,100}$")]
DAY = Duration.parse("1d")


class TimeConfig(Section):
    """Event time: the pane's length, how late events may come, how long a silent partition is waited for.

    A model without live events for `stale` of record time is paged: nothing is decided on a stream at rest.
    """

    pane: Duration = Duration.parse("5m")
    lateness: Duration = Duration.parse("1m")
    idle: Duration = Duration.parse("10s")
    retention: Duration = Duration.parse("30d")
    stale: Duration = Duration.parse("1d")


class WindowConfig(Section):
    """The window a look is taken over: whole panes back from the newest until it holds `min_events`."""

    min_events: int = Field(1_000, ge=1)
    max_age: Duration = Duration.parse("7d")
    min_new_events: int = Field(1, ge=1)


class LabelConfig(Section):
    """How labels find their predictions, and when a pane's labels are taken to be complete."""

    mode: Literal["join", "context"] = "join"
    share: float = Field(1.0, gt=0, le=1)
    horizon: Duration = Duration.parse("30d")
    maturity: Duration = DAY
    min_labels: int = Field(100, ge=1)
    min_coverage: float = Field(0.5, ge=0, le=1)


class FeatureConfig(Section):
    """One feature: what it is, where it comes from, whether the policy may act on its drift.

    A slice feature whose source is `features` is joined: feature logs say which slices a prediction is in.
    """

    kind: Literal["numeric", "categorical"]
    source: Literal["predictions", "features"] = "predictions"
    alert: bool = True


class PolicyConfig(Section):
    """When drift or a falling performance becomes a request."""

    mode: Literal["calibrated", "fixed"] = "calibrated"
    triggers: tuple[Literal["drift", "performance"], ...] = ("drift", "performance")
    psi: float = Field(0.1, gt=0)
    ks: float = Field(0.1, gt=0, lt=1)
    min_features: int = Field(1, ge=1)
    performance_drop: float = Field(0.03, gt=0)
    performance_window: Duration = Duration.parse("28d")
    false_requests: float = Field(1.0, gt=0)
    per: Duration = Duration.parse("30d")
    consecutive: int = Field(3, ge=1)
    clear_ratio: float = Field(0.8, gt=0, le=1)
    cooldown: Duration = Duration.parse("1d")
    max_missing_share: float = Field(0.5, gt=0, le=1)


class DeadlineConfig(Section):
    """How long a request or rollout may stand in each state, in record time, before evaluate fails it."""

    republish: Duration = Duration.parse("1m")
    accept: Duration = Duration.parse("1h")
    train: Duration = Duration.parse("6h")
    validate_: Duration = Field(Duration.parse("6h"), alias="validate")
    hand_over: Duration = Duration.parse("1h")
    canary: Duration = Duration.parse("14d")


class RetrainConfig(Section):
    """What a retraining trains on, with what, and what a candidate must beat.

    `window` reaches back no further than panes are kept (`time.retention`). `history` "window" trains on the
    request's offset ranges alone; "append" adds the champion's own training data. `loader` names a function
    (`module:function`) that replaces the extraction.
    """

    window: Duration = Duration.parse("120d")
    history: Literal["window", "append"] = "append"
    loader: str | None = None
    families: tuple[Literal["hist_gradient_boosting", "logistic_regression", "random_forest"], ...] = (
        "hist_gradient_boosting",
        "logistic_regression",
    )
    max_trials: int = Field(4, ge=1)
    holdout_share: float = Field(0.2, gt=0, lt=1)
    min_rows: int = Field(500, ge=1)
    min_gain: float = -0.005
    seed: int = 0


class CanaryConfig(Section):
    """The ramp and what each step must show; shares and margins are in the units of the outcome."""

    steps: tuple[float, ...] = (5, 10, 25, 50, 100)
    control_percent: float = Field(2.0, ge=0, lt=50)
    margin: float = Field(0.03, gt=0)
    tolerance: float = Field(0.0, ge=0)
    alpha: float = Field(0.05, gt=0, lt=0.5)
    min_outcomes: int = Field(100, ge=1)
    min_buckets: float = Field(20.0, ge=2)
    max_latency_ratio: float = Field(2.0, gt=1)
    max_error_increase: float = Field(0.02, gt=0)
    max_panes: int = Field(60, ge=1)

    @model_validator(mode="after")
    def _rising(self) -> CanaryConfig:
        if (
            not self.steps
            or list(self.steps) != sorted(set(self.steps))
            or not 0 < self.steps[0] <= self.steps[-1] <= 100
        ):
            raise ValueError(f"steps: got {self.steps}, wanted rising percentages between 0 and 100")
        most = 100 - self.control_percent
        if any(step >= most for step in self.steps[:-1]):
            raise ValueError(
                f"steps: got {self.steps}, wanted all but the last below {most:g}: the champion keeps "
                f"control_percent = {self.control_percent:g} at the last"
            )
        return self


class ModelConfig(Section):
    """Everything driftloop knows of a model beforehand (see config/models/flight_delay.toml)."""

    name: ModelName
    task: Literal["binary", "multiclass", "regression"]
    positive: str | bool | int | None = None
    features: dict[str, FeatureConfig] = Field(min_length=1)
    slices: tuple[str, ...] = ()
    # Of each of them, those most frequent in the reference; the others together are one slice more.
    slice_values: int = Field(64, ge=1, le=256)
    time: TimeConfig = TimeConfig()
    window: WindowConfig = WindowConfig()
    labels: LabelConfig = LabelConfig()
    policy: PolicyConfig = PolicyConfig()
    deadlines: DeadlineConfig = DeadlineConfig()
    retrain: RetrainConfig = RetrainConfig()
    canary: CanaryConfig = CanaryConfig()
    model_epoch: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        unknown = [name for name in self.slices if name not in self.features]
        if unknown:
            raise ValueError(f"slices: {unknown} are not among the features {sorted(self.features)}")
        unclear = [name for name in self.slices if "=" in name]
        if unclear:
            raise ValueError(f'slices: {unclear} hold a "=", which parts a feature from its value in a slice\'s name')
        if self.task == "binary" and self.positive is None:
            raise ValueError("positive: missing; for a binary model give the label that counts as positive")
        return self

    def to_json(self) -> bytes:
        """Return the value `models.v1` carries."""
        return self.model_dump_json(by_alias=True).encode()


def parse_model(document: dict[str, Any], where: str) -> ModelConfig:
    """Validate a model's configuration that came from `where`.

    Raises
    ------
    ConfigError
        A line a fault, each naming the file, the key, the value and what is allowed.
    """
    try:
        return ModelConfig.model_validate(document)
    except ValidationError as error:
        raise ConfigError(explain(error, where)) from error


def parse_stored_model(value: bytes, name: str, topic: str) -> ModelConfig:
    """Read a configuration as `models.v1` carries it under a model's name; ConfigError says what is wrong with it."""
    where = f"{topic} key {name[:100]}"
    try:
        document = msgspec.json.decode(value, type=dict[str, Any])
        if is_deep(value):
            raise ValueError("nested too deeply")
    except UNREADABLE as error:
        raise ConfigError(f"{where}: not a JSON object: {error}; apply the model again") from error
    config = parse_model(document, where)
    if config.name != name:
        raise ConfigError(f"{where}: name: got {config.name!r}, wanted the key; apply the model again")
    return config


def read_model(path: Path) -> ModelConfig:
    """Read one model's TOML file; ConfigError when it is missing, not TOML, or not valid."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; give a model's TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    return parse_model(document, str(path))
