"""Models by number, with what is asked of them row by row as columns: a thousand are not looked through each time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from streamer.catalog import Model
from streamer.join.bulk import Owner, Owners


class Fleet:
    """Some models, in a fixed order; columns are worked out once."""

    def __init__(self, models: Sequence[Model]) -> None:
        self._models = list(models)

    def __getitem__(self, number: int) -> Model:
        return self._models[number]

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models)

    def __len__(self) -> int:
        return len(self._models)

    @cached_property
    def names(self) -> list[str]:
        """What they are called."""
        return [model.name for model in self]

    @cached_property
    def owners(self) -> Owners:
        """The models as the label join knows them."""
        return Owners(Owner(model.name, model.epoch) for model in self)

    @cached_property
    def joins(self) -> NDArray[np.bool_]:
        """Whose labels are joined."""
        return np.array([model.config.labels.mode == "join" for model in self], dtype=np.bool_)

    @cached_property
    def joins_features(self) -> NDArray[np.bool_]:
        """Whose predictions are sliced by what feature logs say of them."""
        return np.array([bool(model.logged_slices) for model in self], dtype=np.bool_)

    @cached_property
    def shares(self) -> NDArray[np.float64]:
        """The share of predictions whose labels are joined."""
        return np.array([model.config.labels.share for model in self], dtype=np.float64)

    @cached_property
    def horizons_ms(self) -> NDArray[np.int64]:
        """How long labels are waited for."""
        return np.array([int(model.config.labels.horizon) for model in self], dtype=np.int64)

    @cached_property
    def regressions(self) -> NDArray[np.bool_]:
        """Which predict numbers."""
        return np.array([model.config.task == "regression" for model in self], dtype=np.bool_)

    @cached_property
    def positives(self) -> list[str | None]:
        """The label that counts as positive."""
        return [model.schema.positive for model in self]
