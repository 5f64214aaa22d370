"""Every message that crosses a process boundary, as msgspec Structs: the wire formats and nothing else."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

SCHEMA_HEADER = "driftloop-schema"
SCHEMA_VERSION = b"1"
# Of a message that is many events; JSON needs to say nothing.
CONTENT_TYPE_HEADER = "content-type"
ARROW_STREAM = b"application/vnd.apache.arrow.stream"

# Not "$", which lets a line end follow.
NAME_PATTERN = r"^[a-z0-9._-]{1,100}\Z"
Name = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN)]
Identifier = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
# Epoch milliseconds from March 1973 to the year 2200: a value in seconds or nanoseconds is refused, not counted.
EARLIEST_MS = 100_000_000_000
LATEST_MS = 7_258_118_400_000
EpochMs = Annotated[int, msgspec.Meta(ge=EARLIEST_MS, le=LATEST_MS)]
Scalar = float | int | str | bool | None
Origin = Literal["live", "shadow", "backfill"]
Task = Literal["binary", "multiclass", "regression"]


# All that decoding may raise, whatever the bytes: no UTF-8 and nesting without end have errors of their own.
UNREADABLE = (msgspec.DecodeError, ValueError, RecursionError)


class Prediction(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One answer a model gave: `predictions.v1`, keyed by prediction_id."""

    prediction_id: Identifier
    model: Name
    ts: EpochMs
    version: Name = "_"
    features: dict[str, Scalar] = {}
    prediction: Scalar = None
    score: float | dict[str, float] | None = None
    entity_id: str | None = None
    origin: Origin = "live"
    rollout_id: str | None = None
    bucket: Annotated[int, msgspec.Meta(ge=0, lt=1000)] | None = None
    latency_ms: float | None = None
    error: str | None = None


class FeatureLog(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Features logged apart from a prediction: `features.v1`, keyed by entity_id or prediction_id.

    With a prediction_id they are joined with that prediction, for the slices it does not carry itself.
    """

    model: Name
    ts: EpochMs
    features: dict[str, Scalar]
    version: Name = "_"
    prediction_id: str | None = None
    entity_id: str | None = None


class Label(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What turned out to be true: `labels.v1`, keyed by prediction_id.

    A later `revision` corrects an earlier one; `deleted` takes the label back. The last four
    fields are the prediction's own, for models whose labels are counted without a join.
    """

    prediction_id: Identifier
    model: Name
    ts: EpochMs
    label: Scalar = None
    value: float | None = None
    revision: int = 0
    deleted: bool = False
    version: Name | None = None
    prediction: Scalar = None
    score: float | dict[str, float] | None = None
    prediction_ts: EpochMs | None = None
    previous: Scalar = None


class OffsetRange(msgspec.Struct, kw_only=True, frozen=True):
    """Offsets [start, end) of one partition of one incarnation of a topic."""

    topic: str
    topic_id: str
    partition: int
    start: int
    end: int


class Finding(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One measured reason for a request: the value, what it was held against, and on how much data."""

    subject: str
    statistic: str
    value: float
    threshold: float
    floor: float
    n_reference: int
    n_current: int
    p_value: float | None = None
    reference_value: float | None = None

    @property
    def limit(self) -> float:
        """The line that was passed: a drop is held against the floor alone, other statistics against the larger."""
        return self.floor if self.statistic == "drop" else max(self.threshold, self.floor)


class RetrainRequest(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The trigger event: `retrain-requests.v1`, keyed by model. `request_id` is the same for the same decision."""

    request_id: Identifier
    namespace: str
    model: Name
    model_epoch: int
    version: Name
    kind: Literal["drift", "performance", "manual"]
    pane_end_ms: int
    window_start_ms: int
    window_end_ms: int
    raised_at_ms: int
    findings: list[Finding] = []
    offsets: list[OffsetRange] = []
    policy: dict[str, Any] = {}
    reason: str = ""
    attempt: int = 1


CommandKind = Literal[
    "tick",
    "set_champion",
    "request",
    "allow",
    "clear_fault",
    "accept",
    "train",
    "validate",
    "reject",
    "fail",
    "start_rollout",
    "set_step",
    "promote",
    "rollback",
    "force_rollback",
]


class Command(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A wish to change a model's state: `commands.v1`, keyed by model. Only evaluate answers it."""

    command_id: Identifier
    kind: CommandKind
    model: str = ""
    model_epoch: int = 0
    subject: str = ""
    expected_epoch: int | None = None
    payload: dict[str, Any] = {}
    actor: str = ""


Outcome = Literal["accepted", "refused", "repeated"]


class LedgerEntry(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One transition or one answer: `ledger.v1`, keyed by model.

    An entry with a `command_id` answers that command; one with `state` says where `subject` now
    stands. `epoch` is the deployment's epoch after it.
    """

    model: str
    model_epoch: int
    at_ms: int
    subject_kind: Literal["request", "rollout", "model", "deployment"]
    subject: str
    state: str
    previous: str = ""
    epoch: int = 0
    actor: str = ""
    command_id: str = ""
    command_kind: str = ""
    outcome: Outcome | None = None
    reason: str = ""
    detail: dict[str, Any] = {}


class Deployment(msgspec.Struct, kw_only=True, omit_defaults=False):
    """Who serves what share: `deployments.v1`, keyed by model, and the `split` document in Redis.

    An entity goes to the challenger when its bucket is below 10 · percent.
    """

    model: str
    model_epoch: int
    epoch: int
    champion: str
    challenger: str | None = None
    percent: float = 0.0
    step: int = -1
    since_ms: int = 0
    rollout_id: str | None = None
    salt: str = ""


def encode(message: msgspec.Struct) -> bytes:
    """Return the JSON bytes of a public message."""
    return msgspec.json.encode(message)


class SourceProgress(msgspec.Struct, array_like=True):
    """How far ingest has read one partition: offsets [start, end), and the record time read up to."""

    topic: str
    topic_id: str
    partition: int
    start: int
    end: int
    read_up_to_ms: int


class ModelMark(msgspec.Struct, array_like=True, gc=False):
    """How far one model's live event time has come.

    `times` are, three by three: a source partition's index in the flush, the largest event time of the model in it,
    and the time of the model's last record there.
    """

    model: str
    times: list[int]


class Increment(msgspec.Struct, array_like=True, gc=False):
    """What one flush adds to one pane of one model version. All counts add up; labels' are signed.

    `cells` are what `monitors.sketch.encode_pairs` writes of the counts of all features' cells, in the layout of the
    reference that `fingerprint` names; `performance` maps a slice ("" is the whole) to the task's vector;
    `exposures` and `outcomes` map a rollout to the rows of `monitors.arms.EXPOSURE_DTYPE` and `OUTCOME_DTYPE`.
    `offsets` are, three by three: a source partition's index in the flush, and the first and the last of its offsets.
    """

    model: str
    model_epoch: int
    version: str
    origin: Origin
    source: Literal["predictions", "features", "labels"]
    pane_start_ms: int
    pane_ms: int
    fingerprint: str = ""
    events: int = 0
    sampled: int = 0
    errors: int = 0
    labelled: int = 0
    cells: bytes = b""
    performance: dict[str, bytes] = {}
    exposures: dict[str, bytes] = {}
    outcomes: dict[str, bytes] = {}
    offsets: list[int] = []


class Partial(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One flush of one ingest for one evaluate partition: `partials.v1` (msgpack).

    `sources` are the (topic, topic id, partition) that increments and marks name by their index.
    """

    ingest: str
    progress: list[SourceProgress]
    partition_counts: dict[str, int]
    increments: list[Increment] = []
    marks: list[ModelMark] = []
    tallies: dict[str, dict[str, int]] = {}
    sources: list[tuple[str, str, int]] = []
