"""Decoding of a batch that callers join and leave at every token: greedy, or drawn with a seed.

Rows are aligned at their last token: shorter ones are padded on the left and masked. A row that
finishes leaves at once and takes its part of the key-value cache with it; new rows are prefilled
beside the running ones and joined to them (iteration-level scheduling; Yu et al., Orca, 2022).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

from serving.engines.embedded.mixed_lora import AdapterBank
from serving.engines.protocol import FinishReason


@dataclass
class Row:
    """One prompt and what has been generated for it."""

    prompt: Sequence[int]
    slot: int
    max_tokens: int
    stop_tokens: frozenset[int] = frozenset()
    stop_texts: tuple[str, ...] = ()
    """Stop strings that are more than one token; found in the decoded text."""
    temperature: float = 0.0
    """Above 0: tokens are drawn from the model's distribution, divided by it."""
    drawing: torch.Generator | None = None
    """What draws them, seeded for this row alone: what else is in the batch changes nothing."""
    tokens: list[int] = field(default_factory=list)
    """Generated tokens; the stop token, if one came, is the last."""
    logprobs: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: str | None = None
    """Why the row ended without an answer."""

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None or self.error is not None

    def accept(self, token: int, logprob: float, decode: Callable[[list[int]], str]) -> None:
        """Append a token and decide whether the row is finished."""
        self.tokens.append(token)
        self.logprobs.append(logprob)
        if token in self.stop_tokens or (self.stop_texts and self._has_stop_text(decode)):
            self.finish_reason = "stop"
        elif len(self.tokens) >= self.max_tokens:
            self.finish_reason = "length"

    def _has_stop_text(self, decode: Callable[[list[int]], str]) -> bool:
        # A token is at least one byte, so this tail covers any stop that ends at the last token.
        longest = max(len(stop.encode()) for stop in self.stop_texts)
        tail = decode(self.tokens[-(longest + 1) :])
        return any(stop in tail for stop in self.stop_texts)


class RunningBatch:
    """The rows being decoded, with their key-value cache. Used by one thread only.

    Args:
        model: a decoder-only transformers model with full attention, in eval mode.
        bank: its adapters.
        pad_token: any token id; padded positions are masked.
        decode: token ids to text, for stop strings of several tokens.
    """

    def __init__(
        self,
        model: Any,
        bank: AdapterBank,
        *,
        pad_token: int,
        decode: Callable[[list[int]], str],
    ) -> None:
        self.rows: list[Row] = []
        self._model = model
        self._bank = bank
        self._pad_token = pad_token
        self._decode = decode
        self._clear()

    def _clear(self) -> None:
        self.rows = []
        self._bank.select([], prompts=False)
        self._cache = DynamicCache()
        self._real = torch.zeros((0, 0), dtype=torch.bool)
        """[rows, columns of the cache]: False where a column is padding."""

    def reset(self) -> list[Row]:
        """Drop all rows, for instance after an error; returns them."""
        rows = self.rows
        self._clear()
        return rows

    @torch.inference_mode()
    def admit(self, rows: Sequence[Row]) -> list[Row]:
        """Prefill rows and let them join. Each gets its first token; returns those finished by it.

        What several rows are asked alike is read once.
        """
        asked: dict[tuple[int, tuple[int, ...]], int] = {}
        places = [asked.setdefault((row.slot, tuple(row.prompt)), len(asked)) for row in rows]
        first = [rows[places.index(place)] for place in range(len(asked))]
        longest = max(len(row.prompt) for row in rows)
        ids = torch.full((len(first), longest), self._pad_token)
        real = torch.zeros((len(first), longest), dtype=torch.bool)
        for number, row in enumerate(first):
            ids[number, longest - len(row.prompt) :] = torch.tensor(row.prompt)
            real[number, longest - len(row.prompt) :] = True
        positions = (real.long().cumsum(dim=1) - 1).clamp(min=0)
        cache = DynamicCache()
        self._bank.select([row.slot for row in first], prompts=True)
        logits = self._forward(ids, real, positions, cache)
        if len(first) < len(rows):
            index = torch.tensor(places)
            logits, real = logits[index], real[index]
            for layer in cache.layers:
                layer.keys, layer.values = layer.keys[index], layer.values[index]
        self._sample(rows, logits)
        self._join(rows, cache, real)
        return self._drop([row for row in rows if row.finished])

    @torch.inference_mode()
    def step(self) -> list[Row]:
        """Generate one token for every row; returns the rows that it finished."""
        ids = torch.tensor([[row.tokens[-1]] for row in self.rows])
        positions = self._real.sum(dim=1, keepdim=True)
        self._real = functional.pad(self._real, (0, 1), value=True)
        self._bank.select([row.slot for row in self.rows], prompts=False)
        logits = self._forward(ids, self._real, positions, self._cache)
        self._sample(self.rows, logits)
        return self._drop([row for row in self.rows if row.finished])

    @torch.inference_mode()
    def cancel(self, rows: Sequence[Row]) -> None:
        """Take rows out whose callers are gone."""
        self._drop(list(rows))

    def _forward(self, ids: Tensor, real: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
        """Logits of each row's last token, [rows, vocabulary], float32."""
        output = self._model(
            input_ids=ids,
            # Without padding the attention kernels need no mask, and are faster.
            attention_mask=None if bool(real.all()) else real.long(),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = output.logits[:, -1, :].float()
        return logits

    def _sample(self, rows: Sequence[Row], logits: Tensor) -> None:
        """The next token of each row; its log-probability is the model's own, whatever the temperature."""
        best, tokens = logits.max(dim=-1)
        total = logits.logsumexp(dim=-1)
        for number in torch.isfinite(best - total).nonzero().flatten().tolist():
            row = rows[number]
            if row.temperature:
                chances = torch.softmax(logits[number] / row.temperature, dim=-1)
                tokens[number] = torch.multinomial(chances, 1, generator=row.drawing)
        logprobs = (logits.gather(1, tokens[:, None])[:, 0] - total).tolist()
        for row, token, logprob in zip(rows, tokens.tolist(), logprobs, strict=True):
            if math.isfinite(logprob):
                row.accept(token, min(logprob, 0.0), self._decode)
            else:
                row.error = "the model's output is not finite"

    def _join(self, rows: Sequence[Row], cache: DynamicCache, real: Tensor) -> None:
        if not self.rows:
            self.rows, self._cache, self._real = list(rows), cache, real
            return
        columns = max(self._real.shape[1], real.shape[1])
        ours, theirs = columns - self._real.shape[1], columns - real.shape[1]
        for old, new in zip(self._cache.layers, cache.layers, strict=True):
            old.keys = torch.cat([_widen(old.keys, ours), _widen(new.keys, theirs)])
            old.values = torch.cat([_widen(old.values, ours), _widen(new.values, theirs)])
        self._real = torch.cat(
            [functional.pad(self._real, (ours, 0)), functional.pad(real, (theirs, 0))]
        )
        self.rows.extend(rows)

    def _drop(self, gone: list[Row]) -> list[Row]:
        if not gone:
            return gone
        numbers = {id(row) for row in gone}
        keep = [number for number, row in enumerate(self.rows) if id(row) not in numbers]
        if not keep:
            self._clear()
            return gone
        self.rows = [self.rows[number] for number in keep]
        self._bank.select([row.slot for row in self.rows], prompts=False)
        index = torch.tensor(keep)
        real = self._real[index]
        # Columns that are padding in every row that is left cost attention and hold nothing.
        first = int(real.any(dim=0).long().argmax())
        self._real = real[:, first:]
        for layer in self._cache.layers:
            layer.keys = layer.keys[index, :, first:]
            layer.values = layer.values[index, :, first:]
        return gone


def _widen(states: Tensor, columns: int) -> Tensor:
    """Pad [rows, heads, columns, size] on the left with zeros, which the mask hides."""
    return functional.pad(states, (0, 0, columns, 0)) if columns else states
