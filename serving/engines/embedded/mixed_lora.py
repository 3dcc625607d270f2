"""LoRA adapters of different callers in one batch, over one set of base weights.

Every projection of the model is wrapped once. A wrapped layer holds the weights of all loaded
adapters and a plan says which adapter each row of the running batch uses; slot 0 is the base model.
For one row with adapter ``(A, B)`` the layer computes ``W x + (alpha / r) B A x`` (Hu et al., 2021),
as PEFT does, with the factor folded into ``B`` once at load time.

Prompts are long, so there each adapter's rows are multiplied on their own. Generated tokens come
one per row, so there the adapters in use are joined into one pair of matrices and every row masks
out what is not its own: two small products however many adapters the batch mixes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
BASE_SLOT = 0


@dataclass(frozen=True)
class AdapterWeights:
    """One adapter in memory: module path to ``A`` [rank, in] and scaled ``B`` [out, rank]."""

    rank: int
    pairs: dict[str, tuple[Tensor, Tensor]]


@dataclass
class Plan:
    """Which slot each row of the batch uses."""

    slots: tuple[int, ...] = ()
    uniform: int | None = BASE_SLOT
    """The slot of every row, when there is only one."""
    groups: tuple[tuple[int, Tensor], ...] = ()
    """Adapter slots in use, each with its row numbers; base rows are in none."""
    joined: tuple[int, ...] = ()
    """Slots whose weights are joined for decoding: those in use, and lately used ones."""
    by_group: bool = False
    """Multiply each adapter's rows on their own (prompts) instead of joined (single tokens)."""
    masks: dict[tuple[int, ...], Tensor] = field(default_factory=dict)


class AdapterBank:
    """The wrapped layers of one model, and the adapters in them. Not thread-safe by design: the
    thread that runs the model is the only one that may touch it."""

    def __init__(self, model: nn.Module) -> None:
        self.plan = Plan()
        self.ranks: dict[int, int] = {}
        self.layers: dict[str, MixedLoraLinear] = {}
        self._next_slot = BASE_SLOT + 1
        for path, linear in list(_projections(model)):
            parent, _, name = path.rpartition(".")
            layer = MixedLoraLinear(linear, self)
            setattr(model.get_submodule(parent), name, layer)
            self.layers[path] = layer
        if not self.layers:
            raise ValueError(
                f"the model has none of the layers {', '.join(PROJECTIONS)}: "
                "the embedded engine cannot adapt it, use vLLM"
            )

    def add(self, weights: AdapterWeights) -> int:
        """Put an adapter in; returns its slot. A slot number is never used twice."""
        slot, self._next_slot = self._next_slot, self._next_slot + 1
        for path, (a, b) in weights.pairs.items():
            layer = self.layers[path]
            dtype = layer.linear.weight.dtype
            layer.pairs[slot] = (a.to(dtype).contiguous(), b.to(dtype).contiguous())
        self.ranks[slot] = weights.rank
        return slot

    def remove(self, slot: int) -> None:
        """Take an adapter out. No row of the batch may still use it."""
        if slot in self.plan.slots:
            raise RuntimeError(f"slot {slot} is still in use by the running batch")
        self.ranks.pop(slot, None)
        for layer in self.layers.values():
            layer.forget(slot)
        self.plan.joined = tuple(other for other in self.plan.joined if other != slot)

    def select(self, slots: Sequence[int], *, prompts: bool) -> None:
        """Say which slot each row of the next forward passes uses, and whether they are prompts
        (many tokens in each row) or single tokens."""
        rows = tuple(slots)
        if rows == self.plan.slots and prompts == self.plan.by_group:
            return
        used = sorted(set(rows) - {BASE_SLOT})
        uniform = rows[0] if len(set(rows)) == 1 else (None if used else BASE_SLOT)
        groups = tuple(
            (slot, torch.tensor([row for row, other in enumerate(rows) if other == slot]))
            for slot in used
        )
        joined = self.plan.joined
        # Joining copies weights, so an adapter that just left the batch stays until it is a burden.
        stale = not set(used) <= set(joined) or len(joined) > max(2, 2 * len(used))
        if stale and not prompts:
            joined = tuple(used)
        self.plan = Plan(rows, uniform, groups, joined, prompts)

    def foreign(self, present: tuple[int, ...]) -> Tensor:
        """[rows, 1, sum of ranks]: True where the column belongs to another row's adapter."""
        mask = self.plan.masks.get(present)
        if mask is None:
            owner = torch.tensor([slot for slot in present for _ in range(self.ranks[slot])])
            rows = torch.tensor(self.plan.slots)
            mask = (rows[:, None] != owner[None, :])[:, None, :]
            self.plan.masks[present] = mask
        return mask


class MixedLoraLinear(nn.Module):
    """A linear layer whose rows may each use another adapter."""

    def __init__(self, linear: nn.Linear, bank: AdapterBank) -> None:
        super().__init__()
        self.linear = linear
        self.pairs: dict[int, tuple[Tensor, Tensor]] = {}
        self.bank = bank
        self._joined_slots: tuple[int, ...] = ()
        self._joined: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x: [rows, tokens, in]; returns [rows, tokens, out]."""
        y = self.linear(x)
        plan = self.bank.plan
        if plan.uniform is not None:
            pair = self.pairs.get(plan.uniform)
            if pair is None:
                return y
            return y + functional.linear(functional.linear(x, pair[0]), pair[1])
        if plan.by_group:
            for slot, rows in plan.groups:
                pair = self.pairs.get(slot)
                if pair is not None:
                    delta = functional.linear(functional.linear(x[rows], pair[0]), pair[1])
                    y.index_add_(0, rows, delta)
            return y
        present = tuple(slot for slot in plan.joined if slot in self.pairs)
        if not present:
            return y
        a, b = self._join(present)
        # Filled, not multiplied: an adapter that overflows spoils its own rows only.
        own = functional.linear(x, a).masked_fill(self.bank.foreign(present), 0)
        return y + functional.linear(own, b)

    def forget(self, slot: int) -> None:
        self.pairs.pop(slot, None)
        if slot in self._joined_slots:
            self._joined_slots, self._joined = (), None

    def _join(self, present: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        if self._joined is None or self._joined_slots != present:
            a = torch.cat([self.pairs[slot][0] for slot in present], dim=0)
            b = torch.cat([self.pairs[slot][1] for slot in present], dim=1)
            self._joined_slots, self._joined = present, (a, b)
        return self._joined


def _projections(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) and path.rpartition(".")[2] in PROJECTIONS:
            yield path, module
