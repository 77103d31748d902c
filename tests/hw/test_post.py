"""POST against a NumPy model made of ``moevit.numerics``, with its memories modelled around it."""

import dataclasses
import itertools
from dataclasses import dataclass, field

import numpy as np
import pytest

from hw.bench import put, run
from moevit.config import CONFIGS, AcceleratorConfig
from moevit.hw.interfaces import SLOT_WIDTH, Phase
from moevit.hw.units import post
from moevit.hw.units.route import done_latency
from moevit.isa import encode
from moevit.isa.formats import Attention, Linear, OutputType
from moevit.numerics import fixed, softmax
from moevit.numerics.activation import Activation, activate
from moevit.numerics.route import RouteOrder, apply_score, route, select


@dataclass
class Row:
    """A row of accumulators on its way to POST."""

    instruction: int
    phase: Phase
    row_tile: int
    row: int
    column: int
    acc: np.ndarray
    head: int = 0
    unit: int = 0
    last_column: bool = False
    last: bool = False
    last_row: bool = False
    is_key: bool = False
    is_value: bool = False
    is_gate: bool = False
    tile: int = 0  # number of its A tile
    scale: tuple[int, int] | None = None  # (mult, shift), with the first column tile of CONTEXT

    @property
    def is_kv(self) -> bool:
        return self.is_key or self.is_value


@dataclass
class Staged:
    unit: int
    row: int
    tile: int
    data: list[int]
    maximum: int
    last: bool


@dataclass
class Model:
    """Memories and what every instruction makes of them; also the rows that the array would send."""

    config: AcceleratorConfig
    seed: int
    rows: list[Row] = field(default_factory=list)
    staged: list[Staged] = field(default_factory=list)
    instructions: list[Linear | Attention] = field(default_factory=list)
    tails: list[int] = field(default_factory=list)
    entries: list[tuple[int, int, int, int]] = field(default_factory=list)  # A tile, row, token, score
    appends: list[tuple[int, ...]] = field(default_factory=list)
    tiles: int = 0  # A tiles used

    def __post_init__(self):
        c = self.config
        self.rng = np.random.default_rng(self.seed)
        self.act = self.rng.integers(0, 256, (c.activation_words, c.columns))
        self.operand = np.full((c.operand_words, c.operand_word_bytes), -1)
        shape = (c.post_words, c.columns)
        self.bias = self.rng.integers(-(1 << 31), 1 << 31, shape) >> self.rng.integers(0, 20, shape)
        self.mult, self.shift = self.rng.integers(0, 1 << 16, shape), self.rng.integers(20, 36, shape)
        self.shift[0] = 0
        self.initial_act = self.act.copy()
        self.tail = 0

    def _accumulators(self, bits=31):
        return self.rng.integers(-(1 << bits), 1 << bits, self.config.columns) >> self.rng.integers(
            0, bits - 6
        )

    def _write(self, word, values, wide):
        c = self.config
        if wide:
            self.act[word], self.act[word + 1] = values & 255, values >> 8 & 255
        else:
            self.act[word] = values & 255
        assert word < c.activation_words

    def skip(self, i: Linear):
        """The instruction of an empty queue."""
        number = len(self.instructions)
        self.instructions.append(i)
        acc = self._accumulators()
        self.rows.append(Row(number, Phase.SKIP, 0, 0, 0, acc, last_column=True, last=True, last_row=True))
        self.tail += i.tiles * i.release
        self.tails.append(self.tail)

    def linear(self, i: Linear, queue: list[tuple[int, int]] | None = None):
        """``queue``: the entries (token, score) of a scatter."""
        c, t = self.config, self.config.rows
        number = len(self.instructions)
        self.instructions.append(i)
        for k, entry in enumerate(queue or ()):
            self.entries.append((self.tiles + k // t, k % t, *entry))
        logits = np.zeros((i.n_rows, i.tiles * c.columns), np.int64)
        wide = i.out_type == OutputType.INT16
        row_tiles = -(-i.n_rows // t)
        for r, ct in itertools.product(range(row_tiles), range(i.tiles)):
            n = min(t, i.n_rows - r * t)
            word = (self.tail + ct) % c.post_words
            for k in range(n):
                acc = self._accumulators()
                value = ct >= i.value_tile
                key = ct >= i.key_tile and not value
                self.rows.append(
                    Row(
                        number,
                        Phase.LINEAR,
                        r,
                        k,
                        ct,
                        acc,
                        last_column=ct == i.tiles - 1,
                        last=(r, ct) == (row_tiles - 1, i.tiles - 1),
                        last_row=k == n - 1,
                        is_key=key,
                        is_value=value,
                        is_gate=i.route != RouteOrder.NONE,
                        tile=self.tiles + r,
                    )
                )
                mid = fixed.requantise(acc, self.bias[word], self.mult[word], self.shift[word])
                token, row = i.token + r * t + k, r * t + k
                if i.route:
                    logits[row, ct * c.columns : (ct + 1) * c.columns] = mid
                    continue
                if queue is not None:
                    row, score = queue[row]
                    mid = apply_score(mid, score)
                if key or value:
                    self._write_kv(i, ct, token, fixed.saturate(mid, 8), value)
                    continue
                y = mid
                if i.activation != Activation.NONE:
                    y = fixed.rescale(activate(mid, Activation(i.activation)), i.mult, i.shift, i.zero_point)
                if i.residual:
                    at = i.res + row * i.dst_stride + 2 * ct
                    y = y + (self.act[at] | self.act[at + 1] << 8).astype(np.uint16).astype(np.int16)
                y = fixed.saturate(y, 16 if wide else 8, signed=i.out_type != OutputType.UINT8)
                self._write(i.dst + row * i.dst_stride + (ct << wide), y, wide)
        self.tiles += row_tiles
        self.tail += i.tiles * i.release
        self.tails.append(self.tail)
        if i.route:
            self._route(i, logits[:, : i.experts])

    def _route(self, i, logits):
        order = RouteOrder(i.route)
        scores = route(logits, i.top_k, order, i.threshold)
        if i.clear:
            self.appends.append(())
        for k, chosen in enumerate(select(logits, i.top_k)):
            self.appends += [(int(e), i.token + k, int(scores[k, e])) for e in chosen if scores[k, e]]

    def _write_kv(self, i, ct, token, values, value):
        c, channels = self.config, np.arange(self.config.columns)
        if value:
            word = i.value_base + (ct - i.value_tile) * i.value_stride + token // c.depth
            self.operand[word, channels * c.depth + token % c.depth] = values & 255
        else:
            word = i.key_base + token // c.columns * i.key_stride + (ct - i.key_tile) * c.key_groups
            self.operand[word + channels // c.depth, token % c.columns * c.depth + channels % c.depth] = (
                values & 255
            )

    def attention(self, i: Attention):
        t, c = self.config.rows, self.config.columns
        number = len(self.instructions)
        self.instructions.append(i)
        row_tiles = -(-i.n_rows // t)
        units = [divmod(u, row_tiles) for u in range(i.heads * row_tiles)]
        order = [("Q", 0)]
        for u in range(1, len(units)):
            order += [("Q", u), ("P", u - 1)]
        order.append(("P", len(units) - 1))
        for kind, u in order:
            head, r = units[u]
            n = min(t, i.n_rows - r * t)
            if kind == "Q":
                self._scores(i, number, head, r, u, n)
                continue
            tiles = -(-i.head_dim // c)
            scales = [
                (int(self.rng.integers(1 << 15, 1 << 16)), int(self.rng.integers(20, 36))) for _ in range(n)
            ]
            for ct, k in itertools.product(range(tiles), range(n)):
                acc = np.abs(self._accumulators(20))
                self.rows.append(
                    Row(
                        number,
                        Phase.CONTEXT,
                        r,
                        k,
                        ct,
                        acc,
                        head,
                        u & 1,
                        ct == tiles - 1,
                        ct == tiles - 1 and u == len(units) - 1,
                        k == n - 1,
                        scale=scales[k] if ct == 0 else None,
                    )
                )
                y = fixed.saturate(fixed.requantise(acc, 0, *scales[k]), 8)
                self._write(i.dst + (r * t + k) * i.dst_stride + head * tiles + ct, y, False)
        self.tails.append(self.tail)

    def _scores(self, i, number, head, r, u, n):
        c = self.config.columns
        tiles = -(-i.n_keys // c)
        running = np.full(n, softmax.MAX_EMPTY)
        for ct, k in itertools.product(range(tiles), range(n)):
            acc = self._accumulators(20)
            last = ct == tiles - 1
            self.rows.append(Row(number, Phase.SCORES, r, k, ct, acc, head, u & 1, last, False, k == n - 1))
            s = fixed.saturate(fixed.requantise(acc, 0, i.score_mult, i.score_shift), softmax.SCORE_WIDTH)
            kept = min(c, i.n_keys - ct * c)
            running[k] = max(running[k], softmax.tile_maximum(s[:kept]))
            p = np.zeros(c, np.int64)
            p[:kept] = softmax.probability(s[:kept], running[k])
            maximum = int(running[k]) & ((1 << softmax.MAX_WIDTH) - 1)
            self.staged.append(Staged(u & 1, k, ct, p.tolist(), maximum, last and k == n - 1))


class Bench:
    """POST with its memories; records the cycle of everything."""

    def __init__(self, model: Model, *, gap=lambda: 0, scales_late=False):
        self.model, self.config, self.gap, self.scales_late = model, model.config, gap, scales_late
        self.dut = post.Post(model.config)
        self.act = model.initial_act.copy()
        self.operand = np.full_like(model.operand, -1)
        self.accepted, self.tails, self.staged, self.appends = 0, [], [], []
        self.gate_tiles = self.freed = 0
        self.cycles = {name: [] for name in ("row", "act", "kv", "staged", "retire", "fault", "append")}
        words = zip(model.bias.tolist(), model.mult.tolist(), model.shift.tolist(), strict=True)
        self.parameters = [
            sum(
                ((b & 0xFFFFFFFF) | m << 32 | s << 48) << 64 * lane
                for lane, (b, m, s) in enumerate(zip(*word, strict=True))
            )
            for word in words
        ]

    def run(self):
        run(
            self.dut,
            self._instructions,
            self._rows,
            background=[self._memories, self._record],
            timeout_cycles=40 * len(self.model.rows) + 2000,
        )
        return self

    async def _instructions(self, ctx):
        words = [int.from_bytes(encode(i), "little") for i in self.model.instructions]
        await put(ctx, self.dut.i_instr, words)

    async def _rows(self, ctx):
        """The rows of a tile in consecutive cycles; K and V tiles no faster than the KvWriter takes them."""
        i, scale, config = self.dut.i_rows, self.dut.i_scale, self.config
        scales, cycle = {}, 0
        entries, sent, tile = list(self.model.entries), 0, 0  # those of a tile come up to 5 tiles ahead

        async def tick():
            nonlocal cycle, sent
            entry = self.dut.i_entry
            ctx.set(entry.valid, sent < len(entries) and entries[sent][0] <= tile + 5)
            if ctx.get(entry.valid):
                at, k, token, score = entries[sent]
                ctx.set(entry.slot, at % (1 << SLOT_WIDTH))
                ctx.set(entry.row, k)
                ctx.set(entry.entry, {"token": token, "score": score})
                sent += 1
            ctx.set(scale.valid, 0)
            if cycle in scales:
                for name, value in zip(("valid", "unit", "row", "mult", "shift"), scales[cycle], strict=True):
                    ctx.set(getattr(scale, name), value)
            await ctx.tick()
            ctx.set(i.valid, 0)
            cycle += 1

        rows = self.model.rows
        for number, row in enumerate(rows):
            while self.accepted <= row.instruction:
                await tick()
            tile = row.tile
            while sent < len(entries) and entries[sent][0] <= tile:
                await tick()
            if row.is_gate and (row.row, row.column) == (0, 0):
                while self.gate_tiles - self.freed >= 2:
                    await tick()
                self.gate_tiles += 1
            if row.row == 0:
                previous = rows[number - 1]
                if number and previous.is_kv:
                    for _ in range(config.key_groups - previous.row - 1):
                        await tick()
                for _ in range(self.gap()):
                    await tick()
                if row.scale and not self.scales_late:
                    for k in range(config.rows):
                        same = rows[number + k] if number + k < len(rows) else row
                        if same.scale and (same.row, same.unit) == (k, row.unit):
                            scales[cycle] = (1, row.unit, k, *same.scale)
                            await tick()
            if row.scale and self.scales_late:
                scales[cycle + 3] = (1, row.unit, row.row, *row.scale)
            ctx.set(
                i.meta,
                {
                    "phase": row.phase,
                    "row_tile": row.row_tile,
                    "column": row.column,
                    "head": row.head,
                    "unit": row.unit,
                    "last_column": row.last_column,
                    "last": row.last,
                    "bank": row.instruction & 1,
                    "slot": row.tile % (1 << SLOT_WIDTH),
                },
            )
            ctx.set(i.row, row.row)
            ctx.set(i.last_row, int(row.last_row))
            ctx.set(i.acc, [int(a) & 0xFFFFFFFF for a in row.acc])
            ctx.set(i.valid, 1)
            await tick()
        while len(self.cycles["retire"]) < len(self.model.instructions):
            await tick()
        await ctx.tick().repeat(2)
        assert not ctx.get(self.dut.busy)

    async def _memories(self, ctx):
        """Data two cycles after their address."""
        dut, c = self.dut, self.config
        read, word = 0, 0
        while True:
            (
                _,
                _,
                addr,
                valid,
                pair,
                w_valid,
                w_pair,
                w_data,
                w_mask,
                k_valid,
                k_addr,
                k_data,
                k_mask,
            ) = await ctx.tick().sample(
                dut.parameters.addr,
                dut.act_read.valid,
                dut.act_read.pair,
                dut.act_write.valid,
                dut.act_write.pair,
                dut.act_write.data,
                dut.act_write.mask,
                dut.kv.valid,
                dut.kv.addr,
                dut.kv.data,
                dut.kv.mask,
            )
            ctx.set(dut.parameters.data, word)
            ctx.set(dut.act_read.data, read)
            word = self.parameters[addr]
            read = (
                int.from_bytes(bytes(self.act[2 * pair : 2 * pair + 2].ravel().tolist()), "little")
                if valid
                else 0
            )
            if w_valid:
                self._masked(self.act[2 * w_pair : 2 * w_pair + 2].reshape(-1), w_data, w_mask, 2 * c.columns)
            if k_valid:
                self._masked(self.operand[k_addr], k_data, k_mask, c.operand_word_bytes)

    @staticmethod
    def _masked(target, data, mask, count):
        chosen = np.array([mask >> b & 1 for b in range(count)], bool)
        target[chosen] = np.frombuffer(data.to_bytes(count, "little"), np.uint8)[chosen]

    async def _record(self, ctx):
        dut, cycle = self.dut, 0
        o = dut.o_staged
        retired = False
        row_before = 0
        while True:
            (
                _,
                _,
                i_valid,
                i_ready,
                row,
                act,
                kv,
                staged,
                retire,
                tail,
                f0,
                f1,
                events,
                freed,
                clear,
                appended,
                expert,
                token,
                score,
                *s,
            ) = await ctx.tick().sample(
                dut.i_instr.valid,
                dut.i_instr.ready,
                dut.i_rows.valid,
                dut.act_write.valid,
                dut.kv.valid,
                o.valid,
                dut.retire,
                dut.post_tail,
                dut.fault_activation,
                dut.fault_operand,
                dut.events.busy,
                dut.route_freed,
                dut.o_append.clear,
                dut.o_append.valid,
                dut.o_append.expert,
                dut.o_append.entry.token,
                dut.o_append.entry.score,
                o.unit,
                o.row,
                o.tile,
                o.data,
                o.maximum,
                o.last,
            )
            assert events == row_before
            row_before = row
            if clear:
                self.appends.append(())
            if appended:
                self.appends.append((expert, token, score))
                self.cycles["append"].append(cycle)
            self.freed += freed
            self.accepted += i_valid & i_ready
            for name, happened in (
                ("row", row),
                ("act", act),
                ("kv", kv),
                ("staged", staged),
                ("retire", retire),
                ("fault", f0 | f1),
            ):
                if happened:
                    self.cycles[name].append(cycle)
            if staged:
                unit, o_row, tile, data, maximum, last = s
                self.staged.append(
                    Staged(
                        unit,
                        o_row,
                        tile,
                        list(data.to_bytes(self.config.columns, "little")),
                        maximum,
                        bool(last),
                    )
                )
            if retired:
                self.tails.append(tail)
            retired, cycle = retire, cycle + 1

    def check(self):
        """Memories, staged rows and tails; and every cycle that the latencies promise."""
        model, config = self.model, self.config
        np.testing.assert_array_equal(self.act, model.act)
        np.testing.assert_array_equal(self.operand, model.operand)
        assert self.staged == model.staged
        assert self.tails == model.tails
        assert self.appends == model.appends
        assert self.freed == self.gate_tiles
        want = {"act": [], "kv": [], "staged": [], "retire": [], "fault": []}
        for cycle, row in zip(self.cycles["row"], model.rows, strict=True):
            if row.phase == Phase.SCORES:
                want["staged"].append(cycle + post.staged_latency(config))
                continue
            if row.is_gate:
                if row.last and row.last_row:
                    want["retire"].append(self._gate_retires(cycle, row, len(want["retire"])))
                continue
            if row.phase == Phase.SKIP:
                written = cycle + post.LATENCY  # where its write would be
            elif not row.is_kv:
                want["act"].append(cycle + post.LATENCY)
            elif row.last_row:
                words = max(1, -(-(row.row + 1) // config.depth)) if row.is_value else config.key_groups
                first = max(cycle + post.KV_LATENCY, want["kv"][-1] + 1 if want["kv"] else 0)
                want["kv"] += [first + w for w in range(words)]
            if row.last and row.last_row:
                if row.phase != Phase.SKIP:
                    written = want["kv" if row.is_kv else "act"][-1]
                earliest = want["retire"][-1] + 1 if want["retire"] else 0
                want["retire"].append(max(written + post.RETIRE_LATENCY, earliest))
        assert {name: self.cycles[name] for name in want} == want

    def _gate_retires(self, cycle, row, number):
        """The cycle in which a gate retired, if it may be: Route may still be at row tiles before the last."""
        i, got = self.model.instructions[row.instruction], self.cycles["retire"][number]
        way = post.ROUTE_LATENCY + done_latency(self.config, i.tiles, row.row + 1, i.top_k)
        own = cycle + way + post.RETIRE_LATENCY
        behind = [0, *self.cycles["retire"]][number] + 1
        assert max(own, behind) <= got <= max(own, behind) + way
        return got


def _linear(**fields):
    defaults = {
        "src": 0,
        "src_stride": 1,
        "length": 8,
        "key_tile": fields["tiles"],
        "value_tile": fields["tiles"],
    }
    return Linear(**(defaults | fields))


def _random_linear(model, index):
    """LINEAR with any combination of type, activation, residual and K/V tiles; writes to its own region."""
    rng, c = model.rng, model.config
    tiles = int(rng.integers(1, 5))
    wide = rng.random() < 0.4
    out_type = OutputType.INT16 if wide else OutputType(int(rng.integers(0, 2)))
    stride = 2 * tiles + 2 * int(rng.integers(0, 3))
    region = 256 * index
    residual = int(rng.random() < 0.5)
    dst = region + (0 if wide else int(rng.integers(0, 2)))
    res = region if wide else c.activation_words // 2 + region  # in place when both are int16
    kv = rng.random() < 0.4
    key = int(rng.integers(0, tiles + 1)) if kv else tiles
    value = int(rng.integers(key, tiles + 1)) if kv else tiles
    n_rows = int(rng.integers(1, 3 * c.rows + 1))
    groups = c.key_groups
    return _linear(
        n_rows=n_rows,
        tiles=tiles,
        release=int(rng.random() < 0.7),
        activation=int(rng.integers(0, 4)),
        mult=int(rng.integers(1 << 15, 1 << 16)),
        shift=int(rng.integers(14, 22)),
        zero_point=int(rng.integers(0, 256)),
        residual=residual,
        res=res,
        out_type=out_type,
        dst=dst,
        dst_stride=stride,
        key_tile=key,
        value_tile=value,
        token=c.rows * int(rng.integers(0, 6)),
        key_base=64 * index,
        key_stride=4 * groups,
        value_base=1024 + 64 * index,
        value_stride=16,
    )


@pytest.mark.parametrize(
    ("name", "stalls"), [("tiny", False), ("tiny", True), ("wide", False), ("square", True)]
)
def test_random_linear(name, stalls):
    model = Model(CONFIGS[name], seed=11)
    for index in range(14):
        model.linear(_random_linear(model, index))
    gap = (lambda: int(model.rng.integers(0, 5))) if stalls else (lambda: 0)
    Bench(model, gap=gap).run().check()


@pytest.mark.parametrize("scales_late", [False, True])
@pytest.mark.parametrize(
    ("name", "n_rows", "n_keys", "heads", "head_dim"),
    [("tiny", 10, 21, 2, 12), ("wide", 3, 32, 1, 16), ("tiny", 1, 9, 1, 5), ("square", 8, 8, 3, 8)],
)
def test_attention(name, n_rows, n_keys, heads, head_dim, scales_late):
    model = Model(CONFIGS[name], seed=12)
    for index in range(2):
        model.attention(
            Attention(
                n_rows=n_rows,
                src=0,
                src_stride=1,
                n_keys=n_keys,
                heads=heads,
                head_dim=head_dim,
                key_base=0,
                key_stride=0,
                value_base=0,
                value_stride=0,
                score_mult=40000 + index,
                score_shift=19,
                out_mult=1,
                out_shift=0,
                dst=101 + 512 * index,
                dst_stride=heads * -(-head_dim // CONFIGS[name].columns) + 1,
            )
        )
    Bench(model, scales_late=scales_late).run().check()


def test_linear_and_attention_follow_each_other():
    model = Model(CONFIGS["tiny"], seed=13)
    for index in range(6):
        if index % 2:
            model.attention(
                Attention(
                    n_rows=5,
                    src=0,
                    src_stride=1,
                    n_keys=11,
                    heads=2,
                    head_dim=8,
                    key_base=0,
                    key_stride=0,
                    value_base=0,
                    value_stride=0,
                    score_mult=50000,
                    score_shift=18,
                    out_mult=1,
                    out_shift=0,
                    dst=4096 + 64 * index,
                    dst_stride=2,
                )
            )
        else:
            model.linear(_random_linear(model, index))
    Bench(model, scales_late=True).run().check()


def test_one_row_a_cycle():
    """Rows of two instructions in consecutive cycles, writes likewise, retirement of both in their cycle."""
    model = Model(CONFIGS["tiny"], seed=14)
    model.linear(_linear(n_rows=8, tiles=4, dst=0, dst_stride=4))
    model.linear(
        _linear(n_rows=8, tiles=4, dst=64, dst_stride=8, out_type=OutputType.INT16, residual=1, res=64)
    )
    bench = Bench(model).run()
    bench.check()
    first = bench.cycles["row"][0]
    assert bench.cycles["row"] == list(range(first, first + 64))
    assert bench.cycles["act"] == list(range(first + post.LATENCY, first + post.LATENCY + 64))


def test_retirement_keeps_order():
    """An instruction that ends right behind one whose K words are still being written retires after it."""
    model = Model(CONFIGS["wide"], seed=15)
    for index in range(4):
        kv = index % 2 == 0
        model.linear(
            _linear(
                n_rows=1,
                tiles=1,
                dst=64 * index,
                dst_stride=2,
                key_tile=0 if kv else 1,
                key_base=8 * index,
                key_stride=4,
            )
        )
    bench = Bench(model)
    bench.run().check()
    assert len(bench.cycles["retire"]) == 4


def test_release_and_wrap():
    """Post words wrap at the ring's end, are kept without release, and freed when the instruction retires."""
    config = CONFIGS["tiny"]
    model = Model(config, seed=16)
    for index, (tiles, release) in enumerate([(200, 1), (200, 0), (200, 0), (200, 1), (200, 1), (3, 1)]):
        model.linear(_linear(n_rows=1, tiles=tiles, release=release, dst=512 * index, dst_stride=200))
    bench = Bench(model).run()
    bench.check()
    assert bench.tails == [200, 200, 200, 400, 600, 603]


def test_outside_activation_memory():
    config = CONFIGS["tiny"]
    model = Model(config, seed=17)
    model.linear(_linear(n_rows=2, tiles=1, dst=config.activation_words - 1, dst_stride=0))
    model.instructions[0] = _linear(n_rows=2, tiles=1, dst=config.activation_words - 1, dst_stride=1023)
    bench = Bench(model).run()
    first, second = bench.cycles["row"]
    assert bench.cycles["act"] == [first + post.LATENCY]
    assert bench.cycles["fault"] == [second + post.LATENCY]
    assert bench.cycles["retire"] == [second + post.LATENCY + post.RETIRE_LATENCY]


def _gate(rng, config, **fields):
    experts = int(rng.integers(1, 33))
    return _linear(**({
        "n_rows": int(rng.integers(1, 3 * config.rows + 1)),
        "tiles": -(-experts // config.columns),
        "dst": 0,
        "dst_stride": 2,
        "route": RouteOrder(int(rng.integers(1, 3))),
        "experts": experts,
        "top_k": int(rng.integers(1, min(experts, 4) + 1)),
        "threshold": int(rng.choice([0, 9000])),
        "clear": int(rng.integers(0, 2)),
        "token": int(rng.integers(0, 2000)),
        "release": int(rng.integers(0, 2)),
    } | fields))  # fmt: skip


def _scatter(rng, config, index, tiles=None):
    """An expert's last LINEAR, and its queue: some tokens of a layer, in any order; its own region."""
    tiles = tiles or int(rng.integers(1, 4))
    stride = 2 * tiles + 2 * int(rng.integers(0, 2))
    tokens = rng.permutation(250 // stride)[: int(rng.integers(1, 4 * config.rows))]
    scores = rng.choice([1, 255, 32768, 65535, *rng.integers(1, 1 << 16, 8)], len(tokens))
    i = _linear(
        n_rows=len(tokens),
        tiles=tiles,
        residual=1,
        res=256 * index,
        dst=256 * index,
        dst_stride=stride,
        out_type=OutputType.INT16,
        scatter=1,
    )
    return i, list(zip(tokens.tolist(), scores.tolist(), strict=True))


@pytest.mark.parametrize(("name", "stalls"), [("tiny", False), ("tiny", True), ("wide", False), ("square", True)])
def test_scatter(name, stalls):
    """Rows at their tokens' places with their scores; among ordinary instructions, whose rows have neither."""
    config = CONFIGS[name]
    model = Model(config, seed=18)
    for index in range(12):
        if index % 4 == 3:
            model.linear(_random_linear(model, index))
        else:
            model.linear(*_scatter(model.rng, config, index))
    gap = (lambda: int(model.rng.integers(0, 5))) if stalls else (lambda: 0)
    Bench(model, gap=gap).run().check()


def test_scatter_outside_activation_memory():
    """A token whose row does not exist is a fault for residual and result, and neither is accessed."""
    config = CONFIGS["tiny"]
    model = Model(config, seed=19)
    scatter, _ = _scatter(model.rng, config, 1, tiles=1)
    model.linear(dataclasses.replace(scatter, n_rows=1, dst_stride=2), [(0, 1000)])
    model.entries[0] = (0, 0, 8191, 1000)
    bench = Bench(model).run()
    (row,) = bench.cycles["row"]
    assert bench.cycles["act"] == []
    assert bench.cycles["fault"][-1] == row + post.LATENCY
    assert len(bench.cycles["fault"]) == 2
    assert len(bench.cycles["retire"]) == 1


@pytest.mark.parametrize("name", ["tiny", "wide"])
def test_empty_queues(name):
    """SKIP rows write nothing, move the post pointer on if they release, and retire in their turn."""
    config = CONFIGS[name]
    model = Model(config, seed=20)
    for index in range(14):
        kind = index % 7
        scatter, queue = _scatter(model.rng, config, index)
        if kind in (0, 3):
            model.linear(_random_linear(model, index))
        elif kind == 5:
            model.linear(scatter, queue)
        else:  # a residual beyond the memory would be a fault
            end = {"res": config.activation_words - 1, "dst": config.activation_words - 1, "dst_stride": 1022}
            model.skip(dataclasses.replace(scatter, release=int(kind < 5), **end))
    bench = Bench(model).run()
    bench.check()
    assert not bench.cycles["fault"]


@pytest.mark.parametrize("name", ["tiny", "zcu104", "square", "wide"])
def test_gates(name):
    """Gates one behind the other."""
    config = CONFIGS[name]
    model = Model(config, seed=21)
    for _ in range(6):
        model.linear(_gate(model.rng, config))
    Bench(model).run().check()


@pytest.mark.parametrize("seed", [22, 23])
def test_whole_layers(seed):
    """Gates, gathered and scattered LINEARs, empty queues and dense layers; everything retires in order."""
    config = CONFIGS["tiny"]
    model = Model(config, seed=seed)
    rng = model.rng
    for index in range(20):
        kind = int(rng.integers(0, 5))
        scatter, queue = _scatter(rng, config, index)
        if kind == 0:
            model.linear(_gate(rng, config, n_rows=int(rng.integers(1, 9)), release=1))
        elif kind == 1:
            model.skip(dataclasses.replace(scatter, release=int(rng.integers(0, 2))))
        elif kind == 2:
            model.linear(scatter, queue)
        else:
            model.linear(_random_linear(model, index))
    gap = (lambda: int(rng.integers(0, 3))) if seed % 2 else (lambda: 0)
    Bench(model, gap=gap).run().check()


def test_a_gate_retires_before_what_follows_it():
    """A short LINEAR behind a gate is written long before the gate's tokens are in the queues."""
    config = CONFIGS["tiny"]
    model = Model(config, seed=24)
    model.linear(_gate(model.rng, config, n_rows=4, experts=8, tiles=1, top_k=2, threshold=0))
    model.linear(_linear(n_rows=1, tiles=1, dst=0, dst_stride=1))
    bench = Bench(model).run()
    bench.check()
    last = bench.cycles["row"][3]
    done = last + post.ROUTE_LATENCY + done_latency(config, 1, 4, 2)
    assert bench.cycles["act"][0] < done
    assert bench.cycles["retire"] == [done + post.RETIRE_LATENCY, done + post.RETIRE_LATENCY + 1]
