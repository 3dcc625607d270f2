"""The processes that train one adapter together, and what they must agree on. Worker processes only.

Usually it is one. With several (``TrainSpec.processes``, by Ray Train) each computes its part of every
step's examples and gradients are averaged between them. Only the leader writes; whatever decides how
the run goes on (stop, resume, evaluate) is the leader's word for all, else they would wait for
each other for ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Team:
    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def agreed(self, value: T) -> T:
        """The leader's value, in every process; all must ask at the same point."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def total(self, count: int) -> int:
        """The sum over the processes; all must ask at the same point."""
        if self.size == 1:
            return count
        import torch.distributed as dist

        counts: list[Any] = [None] * self.size
        dist.all_gather_object(counts, count)
        return int(sum(counts))

    def wait(self) -> None:
        """Until all have come this far."""
        self.total(0)


def this_team() -> Team:
    """The team that this process belongs to: of one, unless torch's process group says otherwise."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return Team()
    return Team(dist.get_rank(), dist.get_world_size())
