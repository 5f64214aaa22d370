"""Every Redis key driftloop uses, built here and nowhere else; the README documents them."""

from __future__ import annotations

from dataclasses import dataclass

# Lua: whether a split is older than another, both as JSON. A model made anew begins at epoch 0 of a higher model_epoch.
OLDER_SPLIT = """
local function older_split(one, other)
  one, other = cjson.decode(one), cjson.decode(other)
  local made, remade = one.model_epoch or 1, other.model_epoch or 1
  return made < remade or (made == remade and one.epoch < other.epoch)
end
"""


def log_of_split(stamp: str) -> str:
    """Return the log a model's split was last taken from, "" where its stamp does not say.

    A stamp is three words: the offsets its documents stand at, the log these are of, and the log the split is from.
    """
    words = stamp.split(" ")
    return words[2] if len(words) == 3 else ""


@dataclass(frozen=True)
class Keys:
    """The Redis keys of one namespace; a model's keys share a hash tag, so a cluster keeps them together."""

    namespace: str = ""

    @property
    def root(self) -> str:
        """Return what every key begins with."""
        return f"{self.namespace}:driftloop" if self.namespace else "driftloop"

    def models(self) -> str:
        """Return the hash model → JSON summary."""
        return f"{self.root}:models"

    def workers(self) -> str:
        """Return the hash replica → JSON heartbeat."""
        return f"{self.root}:workers"

    def drift(self, model: str, version: str) -> str:
        """Return the hash feature → JSON of its drift statistics."""
        return self._of(model, "drift", version)

    def performance(self, model: str, version: str) -> str:
        """Return the JSON document of a version's live performance."""
        return self._of(model, "performance", version)

    def slices(self, model: str, version: str) -> str:
        """Return the hash `feature=value` → JSON performance of that slice."""
        return self._of(model, "slices", version)

    def quality(self, model: str, version: str) -> str:
        """Return the hash feature → JSON of its missing, range and unseen shares."""
        return self._of(model, "quality", version)

    def timeline(self, model: str) -> str:
        """Return the stream of a model's completed looks and transitions."""
        return self._of(model, "timeline")

    def alerts(self, model: str) -> str:
        """Return the JSON document of the model's alert state."""
        return self._of(model, "alerts")

    def request(self, model: str) -> str:
        """Return the JSON document of the model's newest request."""
        return self._of(model, "request")

    def split(self, model: str) -> str:
        """Return the JSON deployment a router reads (`streamer.events.Deployment`)."""
        return self._of(model, "split")

    def stamp(self, model: str) -> str:
        """Return how far in which log the model's documents stand (see `log_of_split`)."""
        return self._of(model, "stamp")

    def canary(self, model: str) -> str:
        """Return the JSON document of the model's newest rollout and its verdict."""
        return self._of(model, "canary")

    def rebuild(self) -> str:
        """Return the hash that a rebuild of the label join keeps what it must not forget in."""
        return f"{self.root}:rebuild"

    def join(self, bucket: int) -> str:
        """Return the label-join hash of a bucket."""
        return f"{self.root}:{{j:{bucket}}}"

    def _of(self, model: str, *parts: str) -> str:
        return ":".join((self.root, "{" + model + "}", *parts))
