"""A gate's tokens against ``numerics.route``: selection, scores, order, and every cycle that is promised."""

import dataclasses
import random
from dataclasses import dataclass

import numpy as np
import pytest

from hw.bench import run
from moevit.config import CONFIGS, AcceleratorConfig
from moevit.hw.units.route import Route, done_latency, freed_latency, tile_cycles
from moevit.numerics.route import MAX_EXPERTS, RouteOrder, route, select

SIGNALS = ("valid", "row", "row_tile", "column", "last_column", "last_row", "last", "bank")


@dataclass
class Gate:
    logits: np.ndarray  # [rows, experts]
    top_k: int
    order: RouteOrder
    threshold: int = 0
    token: int = 0
    clear: bool = False

    def events(self, bank: int) -> list[tuple]:
        """What has to come out, in order."""
        scores = route(self.logits, self.top_k, self.order, self.threshold)
        out: list[tuple] = [("clear",)] if self.clear else []
        for row, chosen in enumerate(select(self.logits, self.top_k)):
            out += [(int(e), self.token + row, int(scores[row, e])) for e in chosen if scores[row, e]]
        return [*out, ("done", bank)]


def logits(rng: np.random.Generator, rows: int, experts: int, kind: str) -> np.ndarray:
    shape = rows, experts
    if kind == "tied":
        return rng.choice([-5, 3, 700], shape)
    if kind == "extreme":
        return rng.choice([-(1 << 19), -1, 0, (1 << 19) - 1], shape)
    if kind == "near":  # about every rounding of the table's steps, and of small terms
        return rng.integers(0, 18 << 10, shape) >> rng.integers(0, 8, (rows, 1))
    return rng.integers(-(1 << 19), 1 << 19, shape) >> rng.integers(0, 14, (rows, 1))


class Bench:
    """Sends gates, at most two row tiles that are not freed; records what comes and when."""

    def __init__(self, config: AcceleratorConfig, gates: list[Gate], *, gap: float = 0.0, drain: bool = False):
        self.config, self.gates, self.gap, self.drain = config, gates, gap, drain
        self.dut = Route(config)
        self.events: list[tuple] = []
        self.came: list[int] = []
        self.freed: list[int] = []
        self.done: list[int] = []
        self.rng = random.Random(1)

    def run(self) -> "Bench":
        words = sum(g.logits.size // 2 + 400 for g in self.gates)
        run(self.dut, self._send, background=[self._record], timeout_cycles=20 * words)
        assert self.events == [e for i, g in enumerate(self.gates) for e in g.events(i & 1)]
        assert len(self.freed) == len(self.came)
        return self

    async def _send(self, ctx):
        config, dut = self.config, self.dut
        rng, sent = np.random.default_rng(2), 0
        for number, gate in enumerate(self.gates):
            n_rows, experts = gate.logits.shape
            columns, tiles = -(-experts // config.columns), -(-n_rows // config.rows)
            beyond = columns * config.columns - experts  # lanes that are no experts give anything
            values = np.concatenate([gate.logits, rng.integers(-(1 << 19), 1 << 19, (n_rows, beyond))], 1)
            while number >= 2 and len(self.done) < number - 1:  # POST has two banks
                await ctx.tick()
            for tile in range(tiles):
                while sent - len(self.freed) >= 2 or (self.drain and ctx.get(dut.busy)):
                    await ctx.tick()
                sent += 1
                rows = min(config.rows, n_rows - tile * config.rows)
                for column in range(columns):
                    while self.rng.random() < self.gap:
                        await ctx.tick()
                    for row in range(rows):
                        at = tile * config.rows + row
                        last_column, last_row = column == columns - 1, row == rows - 1
                        last = last_column and tile == tiles - 1
                        given = (1, row, tile, column, last_column, last_row, last, number & 1)
                        for name, value in zip(SIGNALS, given, strict=True):
                            ctx.set(getattr(dut, name), value)
                        ctx.set(dut.mid, values[at, column * config.columns :][: config.columns].tolist())
                        for name in ("order", "top_k", "threshold", "token", "clear"):
                            ctx.set(getattr(dut, name), getattr(gate, name))
                        ctx.set(dut.experts, experts)
                        await ctx.tick()
                        for name in ("valid", "order", "top_k", "threshold", "token", "clear", "experts"):
                            ctx.set(getattr(dut, name), 0)
        while ctx.get(dut.busy):
            await ctx.tick()
        await ctx.tick()

    async def _record(self, ctx):
        dut, cycle = self.dut, 0
        a = dut.o_append
        while True:
            _, _, come, freed, clear, valid, expert, token, score, done = await ctx.tick().sample(
                dut.valid & dut.last_row & dut.last_column, dut.freed,
                a.clear, a.valid, a.expert, a.entry.token, a.entry.score, dut.done,
            )  # fmt: skip
            self.came += [cycle] * come
            self.freed += [cycle] * freed
            self.events += [("clear",)] * clear + [(expert, token, score)] * valid
            if done:
                self.events.append(("done", done >> 1))
                self.done.append(cycle)
            cycle += 1


@pytest.mark.parametrize("kind", ["random", "tied", "extreme", "near"])
@pytest.mark.parametrize("name", ["tiny", "zcu104", "square", "wide"])
def test_random_gates(name, kind):
    """Instructions of all sizes, back to back or with pauses."""
    config = CONFIGS[name]
    rng = np.random.default_rng(len(name))
    gates = []
    for index, experts in enumerate([1, 2, 5, 16, 33, 64, 11]):
        rows = int(rng.integers(1, 3 * config.rows + 2))
        top_k = int(rng.integers(1, min(experts, 4) + 1))
        threshold = [0, 2000, 40000, 65535][int(rng.integers(0, 4))] if index % 2 else 0
        order = RouteOrder(1 + (index + len(kind)) % 2)
        token = int(rng.integers(0, 4000))
        values = logits(rng, rows, experts, kind)
        gates.append(Gate(values, top_k, order, threshold, token, index % 3 == 0))
    Bench(config, gates, gap=0.0 if kind in ("random", "tied") else 0.1).run()


@pytest.mark.parametrize("order", [RouteOrder.SOFTMAX_TOPK, RouteOrder.TOPK_SOFTMAX])
def test_every_k(order):
    """k = 1 … 4 of as many experts and more; nothing above the threshold; a clear without an append."""
    config, rng = CONFIGS["tiny"], np.random.default_rng(3)
    gates = [
        Gate(logits(rng, 9, experts, "near"), k, order, 0, 100 * k, clear=k == 2)
        for k in (1, 2, 3, 4)
        for experts in (k, k + 1, 12)
    ]
    gates.append(Gate(np.zeros((3, 9), np.int64), 2, order, 65535, 5, clear=True))
    Bench(config, gates).run()


@pytest.mark.parametrize("columns", [64, 128])
def test_wide_columns(columns):
    """As many lanes as experts, and more."""
    config = dataclasses.replace(CONFIGS["zcu104"], rows=4, columns=columns, tile_depth=columns * 8)
    rng = np.random.default_rng(columns)
    gates = [
        Gate(logits(rng, 7, experts, kind), 3, RouteOrder.SOFTMAX_TOPK)
        for experts, kind in ((MAX_EXPERTS, "random"), (MAX_EXPERTS, "tied"), (40, "near"))
    ]
    Bench(config, gates).run()


@pytest.mark.parametrize("name", ["tiny", "zcu104", "square", "wide"])
def test_latencies(name):
    """One row tile at a time, with nothing left of the one before."""
    config, rng = CONFIGS[name], np.random.default_rng(5)
    sizes = [
        (experts, rows, k)
        for experts in (config.columns // 2, min(config.columns + 1, 64), 64)
        for rows in {1, config.rows // 2, config.rows}
        for k in (1, 2, 4)
    ]
    gates = [Gate(logits(rng, rows, experts, "near"), k, RouteOrder.SOFTMAX_TOPK) for experts, rows, k in sizes]
    bench = Bench(config, gates, drain=True).run()
    shape = [(-(-experts // config.columns), rows, k) for experts, rows, k in sizes]
    freed = [f - c for f, c in zip(bench.freed, bench.came, strict=True)]
    assert freed == [freed_latency(config, *s) for s in shape]
    done = [d - c for d, c in zip(bench.done, bench.came, strict=True)]
    assert done == [done_latency(config, *s) for s in shape]


@pytest.mark.parametrize(("name", "experts", "top_k"), [
    ("tiny", 16, 2), ("zcu104", 16, 2), ("zcu104", 64, 4), ("square", 64, 2), ("wide", 64, 1),
])  # fmt: skip
def test_throughput(name, experts, top_k):
    """Row tiles that wait are freed in the passes' time, or two in that of one's whole way."""
    config, rng = CONFIGS[name], np.random.default_rng(6)
    columns, rows = -(-experts // config.columns), config.rows
    gate = Gate(logits(rng, 12 * rows, experts, "near"), top_k, RouteOrder.TOPK_SOFTMAX)
    bench = Bench(config, [gate]).run()
    measured = np.diff(bench.freed)[4:]
    passes = tile_cycles(config, columns, rows, top_k)
    way = done_latency(config, columns, rows, top_k)
    arrival = columns * rows  # of a row tile, once there is a credit for it
    assert measured.max() >= passes
    assert measured.mean() <= max(passes + 1, way / 2, (passes + arrival + 4) / 2 + 1, arrival + 1)


def test_a_bad_instruction_does_not_hang():
    """No experts, no k, more column tiles than experts can have: rows are worked off all the same."""
    config = CONFIGS["square"]
    dut, done = Route(config), []

    async def process(ctx):
        for number, (experts, top_k, columns) in enumerate([(0, 2, 1), (8, 0, 1), (100, 7, 12), (8, 1, 1)]):
            for column in range(columns):
                for row in range(2):
                    given = (1, row, 0, column, column == columns - 1, row == 1, column == columns - 1, number & 1)
                    for name, value in zip(SIGNALS, given, strict=True):
                        ctx.set(getattr(dut, name), value)
                    ctx.set(dut.experts, experts)
                    ctx.set(dut.top_k, top_k)
                    await ctx.tick()
            ctx.set(dut.valid, 0)
            while not ctx.get(dut.done):
                await ctx.tick()
            done.append(ctx.get(dut.done))

    run(dut, process, timeout_cycles=3000)
    assert done == [1, 2, 1, 2]
