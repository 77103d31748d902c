"""The energy model: that it counts what happens, that every sum is a range, and how far it is from published power."""

import dataclasses

import pytest

from moevit.boards.devices import BOARDS
from moevit.boards.resources import estimate as estimate_resources
from moevit.config import CONFIGS
from moevit.energy import constants
from moevit.energy.activity import activity
from moevit.energy.constants import CONSTANTS, Constant
from moevit.energy.estimate import estimate
from moevit.energy.published import PUBLISHED
from moevit.energy.validate import validate
from moevit.isa import Attention, Linear, NormMode, OutputType

TINY = CONFIGS["tiny"]  # T, C, K = 4, 8, 4
MOVED = {"weights": 1000, "instructions": 128, "activations": 72, "experts": 0, "speculative": 0}


def linear(**fields: int) -> Linear:
    base = {"n_rows": 6, "src": 0, "src_stride": 2, "length": 16, "tiles": 3, "dst": 64, "dst_stride": 3,
            "key_tile": 3, "value_tile": 3}  # fmt: skip
    return Linear(**base | fields)


def count(*instructions: Linear | Attention, queues: dict[int, list[float]] | None = None):
    return activity(TINY, [(instructions, queues or {})], macs=1, cycles=1000, dram_bytes=MOVED)


def test_a_linear_layer_is_counted_by_hand():
    got = count(linear())
    steps = 2 * 3 * 4  # row tiles of 4, column tiles, 16 elements 4 at a time
    assert got.issued_macs == steps * 128
    assert got.operand_bytes == steps * 8 * 4
    assert got.tile_bytes == 6 * 16 + steps * 4 * 4
    assert got.post_elements == 6 * 3 * 8
    assert got.norm_elements == 0
    assert got.activation_bytes == 6 * 16 + 6 * 24  # int8 in, int8 out
    assert got.dram_bytes == 1200


def test_layernorm_reads_wide_rows_twice_and_a_residual_is_read():
    plain = count(linear())
    wide = count(linear(norm=NormMode.LAYERNORM, out_type=OutputType.INT16, residual=1))
    assert wide.norm_elements == 6 * 16
    assert wide.activation_bytes == 6 * 32 * 2 + 6 * 24 * 2 * 2
    assert wide.issued_macs == plain.issued_macs


def test_keys_and_values_go_to_the_operand_memory():
    plain, split = count(linear()), count(linear(key_tile=1, value_tile=2))
    assert split.activation_bytes == plain.activation_bytes - 6 * 16
    assert split.operand_bytes == plain.operand_bytes + 6 * 16


def test_experts_count_the_tokens_of_their_queue():
    gate = linear(route=1, experts=2, top_k=1)
    expert = linear(gather=1, queue=1)
    none, some = (count(gate, expert, queues={0: [0, tokens]}) for tokens in (0, 4))
    only_gate = count(gate)
    assert none.issued_macs == only_gate.issued_macs
    assert some.issued_macs == only_gate.issued_macs + 3 * 4 * 128


def test_attention_is_counted_by_hand():
    a = Attention(
        n_rows=5, src=0, src_stride=1, n_keys=9, heads=2, head_dim=8, key_base=0, key_stride=2, value_base=8,
        value_stride=3, score_mult=1, score_shift=0, out_mult=1, out_shift=0, dst=64, dst_stride=1,
    )  # fmt: skip
    got = count(a)
    steps = 2 * 2 * (2 * 2 + 1 * 3)  # heads, row tiles, (key tiles by head_dim / K) + (value tiles by keys / K)
    assert got.issued_macs == steps * 128
    assert got.post_elements == 2 * 5 * (2 + 1) * 8
    assert got.dram_bytes == 1200


def test_the_sum_is_that_of_its_parts_and_grows_with_each_event():
    base = count(linear())
    whole = estimate(base, clock_mhz=100, luts=40_000)
    assert whole.accelerator.typical == pytest.approx(sum(p.energy.typical for p in whole.parts))
    assert whole.total.low < whole.total.typical < whole.total.high
    assert whole.watts.typical == pytest.approx(whole.total.typical / 1e-5)
    for name in ("issued_macs", "post_elements", "norm_elements", "tile_bytes", "operand_bytes", "activation_bytes",
                 "dram_bytes", "cycles"):  # fmt: skip
        more = dataclasses.replace(base, **{name: 2 * getattr(base, name) + 1})
        assert estimate(more, clock_mhz=100, luts=40_000).total.typical > whole.total.typical, name


def test_every_constant_is_used_and_says_where_it_is_from():
    energy = estimate(count(linear()), clock_mhz=100, luts=40_000)
    used = {part.constant for part in (*energy.parts, energy.system)}
    assert used == set(CONSTANTS)
    assert all(constant.source and constant.unit for constant in CONSTANTS)
    assert 0.3 < constants.SCALING < 0.35


def test_a_constant_is_a_range():
    with pytest.raises(ValueError, match="no range"):
        Constant("x", "pJ", 2, 1, 3, "")


def test_published_designs_beside_the_model():
    checks = {(c.design.name, c.design.board): c for c in validate()}
    # A board's supply, a data-centre card with HBM: far above what an accelerator on Zynq takes, and not modelled.
    outside = {key for key, check in checks.items() if not check.inside}
    assert outside == {("Huang et al.", "ZCU102"), ("CoQMoE", "U280")}
    for key in set(checks) - outside:
        assert 0.6 < checks[key].ratio < 1.1, key
    assert all(design.source for design in PUBLISHED)


def test_resources_of_the_machine_that_they_are_scaled_from():
    """docs/resources.md: 97,527 LUT, 99,706 FF, 1,275 DSP, 290 BRAM36, 95 URAM."""
    got = estimate_resources(CONFIGS["zcu104"])
    assert got.lut == pytest.approx(97_527, rel=0.005)
    assert got.ff == pytest.approx(99_706, rel=0.005)
    assert got.dsp == 1275
    assert got.bram36 == pytest.approx(290, rel=0.05)
    assert got.uram == 95
    assert got.excess(BOARDS["zcu104"].device) == []
    assert {line.split()[0] for line in got.excess(BOARDS["kv260"].device)} == {"dsp", "bram36", "uram"}
