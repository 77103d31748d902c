"""Mixtures of experts for random programs: a gate, and experts in any order, with other work in between."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from moevit.isa import Linear, NormMode, OutputType
from moevit.numerics.activation import Activation
from moevit.numerics.fixed import quantise_scale
from moevit.numerics.route import MAX_EXPERTS, MAX_TOP_K, RouteOrder

if TYPE_CHECKING:
    from differential.random_program import Generator, _Rows

SHORT, LONG = 4, 22  # LINEARs over queues in a mixture


class Mixture:
    """Draws one mixture into a generator's work.

    Everything is drawn: what the gate reads and keeps, its experts, ties between them and saturated logits, the
    threshold (from which queues are empty); whether its rows come in two parts; which experts run, and how: tokens
    to dense rows and those back to the tokens, or only the first, or both in one LINEAR.
    """

    def __init__(self, generator: Generator) -> None:
        self.g = generator
        self.rng, self.columns = generator.rng, generator.config.columns

    def draw(self) -> None:
        """Stops early where memory runs short, which takes the tensors away; what is there by then is complete."""
        g = self.g
        self.epoch = g.recycled
        residuals = [r for r in g.rows if r.bits == 16]
        if not residuals:
            return
        self.residual = residuals[g._int(0, len(residuals) - 1)]
        candidates = [r for r in g.rows if r is not self.residual or r.bits == 16]
        x = candidates[g._int(0, len(candidates) - 1)]
        rows = min(x.rows, self.residual.rows)
        self.first = g._int(0, rows - 1) if self.rng.random() < 0.2 else 0
        self.tokens = g._int(1, rows - self.first) if self.rng.random() < 0.4 else rows - self.first
        if not self._gate(x):
            return
        few = list(range(self.experts))
        if self.experts > SHORT:
            few = [int(q) for q in self.rng.choice(self.experts, SHORT, replace=False)]
        self.rng.shuffle(few)
        if self.rng.random() < 0.1:
            few.append(g._int(0, MAX_EXPERTS - 1))  # perhaps one that the gate does not have
        if self.rng.random() < 0.2:
            few = [int(q) for q in self.rng.choice(self.experts, LONG)]
        for queue in few:
            self._expert(queue)
            if self.rng.random() < 0.15:
                g._linear()
            if g.recycled != self.epoch:
                return

    # -- the gate -----------------------------------------------------------------------------------------------

    def _gate(self, x: _Rows) -> bool:
        g, columns = self.g, self.columns
        self.experts = g._int(1, 6) if self.rng.random() < 0.7 else g._int(1, MAX_EXPERTS)
        top_k = g._int(1, min(MAX_TOP_K, self.experts))
        tiles = -(-self.experts // columns) + (self.rng.random() < 0.1)
        load = g._load_fields(x)
        self.rows = x
        keep = {}
        if x.bits == 16:  # experts read 8-bit rows only
            width = -(-load["length"] // columns) * columns
            kept = g._place(x.rows, width, 8, bool(load["signed"]))
            keep = {"keep": 1, "keep_dst": kept.addr + self.first * kept.stride, "keep_stride": kept.stride}
            self.rows = dataclasses.replace(kept, channels=width)
        if g.recycled != self.epoch:
            return False
        threshold = 0
        if self.rng.random() < 0.3:
            threshold = g._int(0, 40_000 if self.rng.random() < 0.8 else (1 << 16) - 1)
        fields = load | keep | {
            "tiles": tiles, "key_tile": tiles, "value_tile": tiles, "dst": 0, "dst_stride": 0, "token": self.first,
            "route": g._int(RouteOrder.SOFTMAX_TOPK, RouteOrder.TOPK_SOFTMAX), "experts": self.experts,
            "top_k": top_k, "threshold": threshold,
        }  # fmt: skip
        fields["src"] += self.first * x.stride
        copies = 0 if self.rng.random() < 0.6 else 3 * self.experts if self.rng.random() < 0.3 else self.experts
        g._stream(load["length"], tiles, load["norm"] != NormMode.NONE, copies)
        split = g._int(1, self.tokens - 1) if self.tokens > 1 and self.rng.random() < 0.3 else 0
        if split:
            held = self.rng.random() < 0.5
            g.work.append(Linear(n_rows=split, clear=1, release=int(not held), **fields))
            if not held:
                if self.rng.random() < 0.3:
                    g._linear()
                    if g.recycled != self.epoch:
                        return False
                g._stream(load["length"], tiles, load["norm"] != NormMode.NONE, copies)
            fields["src"] += split * x.stride
            fields["token"] += split
            if keep:
                fields["keep_dst"] += split * keep["keep_stride"]
        g.work.append(Linear(n_rows=self.tokens - split, clear=int(not split), **fields))
        if keep:
            kept_rows = dataclasses.replace(
                self.rows, addr=self.rows.addr + self.first * self.rows.stride, rows=self.tokens
            )
            g.rows.append(kept_rows)
        return True

    # -- experts ------------------------------------------------------------------------------------------------

    def _expert(self, queue: int) -> None:
        g = self.g
        if self.rng.random() < 0.25:
            self._scatter(queue, self.rows, gather=1)
            return
        hidden = self._gather(queue)
        if hidden is not None and hidden.bits == 8 and self.rng.random() < 0.85:
            for _ in range(g._int(1, 2) if self.rng.random() < 0.2 else 1):
                self._scatter(queue, hidden, gather=0)

    def _load(self, x: _Rows) -> dict[str, int]:
        length = self.g._int(1, x.channels)
        return {"src": x.addr, "src_stride": x.stride, "length": length, "signed": int(x.signed)}

    def _limit(self) -> int:
        """``n_rows``: what the queue may hold, or somewhat more."""
        return self.tokens + (self.g._int(0, 3) if self.rng.random() < 0.2 else 0)

    def _gather(self, queue: int) -> _Rows | None:
        g = self.g
        tiles = g._int(1, 3)
        out_type = OutputType(int(self.rng.choice([0, 0, 1, 1, 2])))
        activation = Activation(g._int(0, 3))
        second = quantise_scale(2.0 ** self.rng.uniform(-6, 0))
        bits = 16 if out_type == OutputType.INT16 else 8
        hidden = g._place(self.tokens + 3, tiles * self.columns, bits, out_type != OutputType.UINT8)
        if g.recycled != self.epoch:
            return None
        fields = self._load(self.rows) | {
            "tiles": tiles, "key_tile": tiles, "value_tile": tiles, "out_type": int(out_type),
            "activation": int(activation), "mult": second[0], "shift": second[1],
            "zero_point": g._int(0, 255) if activation else 0, "dst": hidden.addr, "dst_stride": hidden.stride,
        }  # fmt: skip
        self._issue(queue, Linear(n_rows=self.tokens + 3, gather=1, queue=queue, **fields))
        return hidden

    def _scatter(self, queue: int, x: _Rows, gather: int) -> None:
        g, out = self.g, self.residual
        whole = out.channels // self.columns
        tiles = g._int(1, min(3, whole))
        row = out.addr + 2 * g._int(0, whole - tiles)
        fields = self._load(x) | {
            "tiles": tiles, "key_tile": tiles, "value_tile": tiles, "out_type": int(OutputType.INT16),
            "residual": 1, "res": row, "dst": row, "dst_stride": out.stride,
        }  # fmt: skip
        self._issue(queue, Linear(n_rows=self._limit(), gather=gather, scatter=1, queue=queue, **fields))

    def _issue(self, queue: int, linear: Linear) -> None:
        g = self.g
        g._stream(linear.length, linear.tiles, norm=False)
        g.queued[len(g.work)] = queue
        g.work.append(linear)
