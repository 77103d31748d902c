"""The K/V writer against the operand layout, byte by byte."""

import numpy as np
import pytest

from hw.bench import run
from moevit.config import CONFIGS, AcceleratorConfig
from moevit.hw.units import kv_writer

CONFIGURATIONS = {name: CONFIGS[name] for name in ("tiny", "square", "wide")} | {
    # T > K, and T = C
    "tall": AcceleratorConfig(
        name="tall",
        rows=8,
        columns=8,
        depth=2,
        operand_words=1000,
        activation_words=512,
        tile_depth=64,
        post_words=16,
        norm_words=16,
        queue_entries=16,
        axi_data_width=32,
    ),
    # T < K
    "deep": AcceleratorConfig(
        name="deep",
        rows=2,
        columns=8,
        depth=8,
        operand_words=1000,
        activation_words=512,
        tile_depth=64,
        post_words=16,
        norm_words=16,
        queue_entries=16,
        axi_data_width=32,
    ),
}


def _words(config, value, n_rows):
    return max(1, -(-n_rows // config.depth)) if value else config.key_groups


def _write(config, memory, tile):
    """What the layout says of a tile (dict of the row signature's members, with ``data`` [rows, C])."""
    base = tile["slot"] * config.rows
    for i, row in enumerate(tile["data"]):
        for c in range(config.columns):
            if tile["value"]:
                token = base % config.depth + i
                word, byte = token // config.depth, c * config.depth + token % config.depth
            else:
                lane = base + i
                word, byte = c // config.depth, lane * config.depth + c % config.depth
            memory[tile["address"] + word, byte] = row[c]


def _tiles(config, rng, count):
    tiles = []
    for i in range(count):
        n_rows = int(rng.integers(1, config.rows + 1)) if rng.random() < 0.4 else config.rows
        value = int(rng.integers(0, 2))
        tiles.append(
            {
                "value": value,
                "slot": int(rng.integers(0, kv_writer.slot_count(config))),
                "address": int(rng.integers(0, config.operand_words - 8)),
                "final": int(rng.random() < 0.3),
                "bank": i & 1,
                "data": rng.integers(0, 256, (n_rows, config.columns)),
            }
        )
    return tiles


async def _send(ctx, dut, tiles, gap):
    """Rows of a tile in consecutive cycles, tiles as close as the throughput allows (plus ``gap()``)."""
    i, config = dut.i_rows, dut.config
    for tile in tiles:
        n_rows = len(tile["data"])
        for row, data in enumerate(tile["data"]):
            for name in ("value", "slot", "address", "final", "bank"):
                ctx.set(getattr(i, name), tile[name])
            ctx.set(i.valid, 1)
            ctx.set(i.row, row)
            ctx.set(i.last_row, row == n_rows - 1)
            ctx.set(i.data, int.from_bytes(bytes(data.tolist()), "little"))
            await ctx.tick()
            ctx.set(i.valid, 0)
            ctx.set(i.last_row, 0)
        for _ in range(max(0, config.key_groups - n_rows) + gap()):
            await ctx.tick()
    await ctx.tick().repeat(kv_writer.LATENCY + config.columns)


def _run(config, tiles, gap=lambda: 0):
    """Memory, (cycle of last row per tile), (cycle of each write), [(cycle, done)], faults."""
    dut = kv_writer.KvWriter(config)
    memory = np.full((config.operand_words, config.operand_word_bytes), -1)
    log = {"last_row": [], "write": [], "done": [], "fault": []}

    async def source(ctx):
        await _send(ctx, dut, tiles, gap)
        assert not ctx.get(dut.busy)

    async def monitor(ctx):
        kv, cycle = dut.kv, 0
        while True:
            _, _, row, last, valid, addr, data, mask, done, fault = await ctx.tick().sample(
                dut.i_rows.valid,
                dut.i_rows.last_row,
                kv.valid,
                kv.addr,
                kv.data,
                kv.mask,
                dut.done,
                dut.fault,
            )
            if row and last:
                log["last_row"].append(cycle)
            if valid:
                log["write"].append(cycle)
                new = np.frombuffer(data.to_bytes(config.operand_word_bytes, "little"), np.uint8)
                chosen = np.array([mask >> b & 1 for b in range(config.operand_word_bytes)], bool)
                memory[addr, chosen] = new[chosen]
            if done:
                log["done"].append((cycle, done))
            if fault:
                log["fault"].append(cycle)
            cycle += 1

    run(dut, source, background=[monitor])
    return memory, log


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_layout_and_cycles(name, gaps):
    config, rng = CONFIGURATIONS[name], np.random.default_rng(5)
    tiles = _tiles(config, rng, 60)
    memory, log = _run(config, tiles, (lambda: int(rng.integers(0, 4))) if gaps else (lambda: 0))
    want = np.full_like(memory, -1)
    for tile in tiles:
        _write(config, want, tile)
    np.testing.assert_array_equal(memory, want)

    cycles, done = [-1], []
    for tile, last in zip(tiles, log["last_row"], strict=True):
        words = _words(config, tile["value"], len(tile["data"]))
        first = max(last + kv_writer.LATENCY, cycles[-1] + 1)
        assert first < last + kv_writer.LATENCY + config.key_groups
        cycles += [first + i for i in range(words)]
        if tile["final"]:
            done.append((cycles[-1], 1 << tile["bank"]))
    assert (log["write"], log["done"], log["fault"]) == (cycles[1:], done, [])


def test_outside_is_not_written():
    config, rng = CONFIGS["tiny"], np.random.default_rng(6)
    tiles = _tiles(config, rng, 3)
    for tile in tiles:
        tile.update(value=0, final=1)
    tiles[0]["address"], tiles[1]["address"], tiles[2]["address"] = config.operand_words - 1, 1 << 17, 0
    memory, log = _run(config, tiles)
    assert len(log["fault"]) == 1 + config.key_groups
    assert (memory >= 0).any(1).nonzero()[0].tolist() == [0, 1, config.operand_words - 1]
    assert len(log["done"]) == 3


def test_tiles_too_fast_are_flagged():
    config, rng = CONFIGS["tiny"], np.random.default_rng(7)
    tiles = _tiles(config, rng, 2)
    for tile in tiles:
        tile.update(value=0, final=1, data=tile["data"][:1])
    dut = kv_writer.KvWriter(config)
    faults = []

    async def source(ctx):
        ctx.set(dut.i_rows.valid, 1)
        ctx.set(dut.i_rows.last_row, 1)
        await ctx.tick().repeat(3)
        ctx.set(dut.i_rows.valid, 0)
        for _ in range(10):
            faults.append(ctx.get(dut.fault))
            await ctx.tick()

    run(dut, source)
    assert sum(faults) == 1
