"""LoRA adapters of different callers in one batch, over one set of base weights.

Every projection of the model is wrapped once. A wrapped layer holds the weights of all loaded
adapters and a plan says which adapter each row of the running batch uses; slot 0 is the base model.
For one row with adapter ``(A, B)`` the layer computes ``W x + (alpha / r) B A x`` (Hu et al., 2021),
as PEFT does, with the factor folded into ``B`` once at load time.

Prompts are long, so there each adapter's rows are multiplied on their own. Generated tokens come
one per row, so there the adapters in use are stacked, every row takes a seat at its adapter, and two
batched products serve them all: each weight is read once, however many adapters the batch mixes.
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
    stacked: tuple[int, ...] = ()
    """Slots whose weights are stacked for decoding: those in use, and lately used ones."""
    by_group: bool = False
    """Multiply each adapter's rows on their own (prompts) instead of stacked (single tokens)."""
    seatings: dict[tuple[int, ...], Seating] = field(default_factory=dict)


@dataclass(frozen=True)
class Seating:
    """Where the rows of a batch sit at a stack of adapters."""

    seats: Tensor
    """[adapters, most rows of one]: row numbers; a seat that is left over holds some other row."""
    taken: Tensor | None
    """The seats that count, numbered through; None when all do."""
    rows: Tensor
    """The rows that sit in them, in the same order."""


def seat(slots: Sequence[int], stack: Sequence[int]) -> Seating:
    """Seats for the rows whose slot is in the stack; the other rows get none."""
    groups = [[row for row, slot in enumerate(slots) if slot == own] for own in stack]
    width = max(map(len, groups))
    seats = [group + [0] * (width - len(group)) for group in groups]
    taken = [at * width + n for at, group in enumerate(groups) for n in range(len(group))]
    return Seating(
        torch.tensor(seats),
        None if len(taken) == width * len(stack) else torch.tensor(taken),
        torch.tensor([row for group in groups for row in group]),
    )


class AdapterBank:
    """The wrapped layers of one model, and the adapters in them. Not thread-safe by design: the
    thread that runs the model is the only one that may touch it."""

    def __init__(self, model: nn.Module) -> None:
        self.plan = Plan()
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
        return slot

    def remove(self, slot: int) -> None:
        """Take an adapter out. No row of the batch may still use it."""
        if slot in self.plan.slots:
            raise RuntimeError(f"slot {slot} is still in use by the running batch")
        for layer in self.layers.values():
            layer.forget(slot)
        self.plan.stacked = tuple(other for other in self.plan.stacked if other != slot)

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
        stacked = self.plan.stacked
        # Stacking copies weights, so an adapter that just left the batch stays until it is a burden.
        stale = not set(used) <= set(stacked) or len(stacked) > max(2, 2 * len(used))
        if stale and not prompts:
            stacked = tuple(used)
        self.plan = Plan(rows, uniform, groups, stacked, prompts)

    def seating(self, stack: tuple[int, ...]) -> Seating:
        """How the present batch sits at a stack of adapters."""
        seating = self.plan.seatings.get(stack)
        if seating is None:
            seating = self.plan.seatings[stack] = seat(self.plan.slots, stack)
        return seating


class MixedLoraLinear(nn.Module):
    """A linear layer whose rows may each use another adapter."""

    def __init__(self, linear: nn.Linear, bank: AdapterBank) -> None:
        super().__init__()
        self.linear = linear
        self.pairs: dict[int, tuple[Tensor, Tensor]] = {}
        self.bank = bank
        self._stacked_slots: tuple[int, ...] = ()
        self._stacked: tuple[Tensor, Tensor] | None = None

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
        present = tuple(slot for slot in plan.stacked if slot in self.pairs)
        if not present:
            return y
        seating = self.bank.seating(present)
        if not len(seating.rows):
            return y
        a, b = self._stack(present)
        delta = torch.bmm(torch.bmm(x[seating.seats].flatten(1, 2), a), b).view(-1, *y.shape[1:])
        if seating.taken is not None:
            # Left over seats are not added as zeros: an adapter that overflows spoils no other row.
            delta = delta[seating.taken]
        return y.index_add_(0, seating.rows, delta)

    def forget(self, slot: int) -> None:
        self.pairs.pop(slot, None)
        if slot in self._stacked_slots:
            self._stacked_slots, self._stacked = (), None

    def _stack(self, present: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """``A`` [adapters, in, rank] and ``B`` [adapters, rank, out]; smaller ranks end in zeros."""
        if self._stacked is None or self._stacked_slots != present:
            pairs = [self.pairs[slot] for slot in present]
            rank = max(a.shape[0] for a, _ in pairs)
            a = torch.stack([functional.pad(a, (0, 0, 0, rank - len(a))) for a, _ in pairs])
            b = torch.stack([functional.pad(b.T, (0, 0, 0, rank - b.shape[1])) for _, b in pairs])
            self._stacked_slots, self._stacked = present, (a.transpose(1, 2), b)
        return self._stacked


def _projections(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) and path.rpartition(".")[2] in PROJECTIONS:
            yield path, module
