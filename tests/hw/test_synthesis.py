"""Units through open synthesis for UltraScale+: they map, and no path between registers is long.

Yosys counts cells: LUTs, carry blocks of four or eight bits and wide multiplexers alike, so that a 48-bit adder
alone is six or more. It does not move the registers around multipliers into the DSPs, which is why DSPs end paths.
"""

import dataclasses
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from amaranth.back import verilog

from moevit.boards.synthesis import flow
from moevit.boards.synthesis.netlist import Resources
from moevit.config import CONFIGS, AcceleratorConfig
from moevit.hw.ram import RamPlatform

# Longest path of each unit on tiny, in cells, as measured; a change that lengthens one shows here.
LONGEST = {
    "kv_writer.KvWriter": 7,
    "softmax.Softmax": 7,
    "mac_sequencer.Sequencer": 7,
    "mac_passes.InstructionSetup": 6,
    "queues.Queues": 8,
    "keep_writer.KeepWriter": 7,
    "route.Route": 8,
    "post.Post": 10,
    "dispatch.Dispatch": 10,
    "fetch.Fetch": 11,
    "streamer.Streamer": 11,
    "dma.Dma": 13,
    "loader.Loader": 16,
}

SYNTHESISE = """
import sys
from pyosys import libyosys as ys
design = ys.Design()
def run(*words):
    ys.run_pass(" ".join(words), design)
run("read_verilog", sys.argv[1])
run("synth_xilinx -family xcup -flatten -noiopad -noclkbuf -top top")
for cell in ("FD*", "RAM*", "URAM*", "DSP48E2", "SRL*"):
    run("delete", "t:" + cell)
run("tee -o", sys.argv[2], "ltp")
"""


# What the memories of zcu104 take; the whole must fit into 312 block RAMs and 96 UltraRAMs.
ZCU104_MEMORIES = {
    "operand_memory.OperandMemory": {"uram": 86, "bram36": 0},
    "activation_memory.ActivationMemory": {"uram": 8, "bram36": 184},
    "a_tile.ATile": {"uram": 0, "bram36": 29},
}


def verilog_of(name: str, config: AcceleratorConfig) -> str:
    """A unit's Verilog, with the top module ``top``."""
    module, unit = name.split(".")
    component = getattr(importlib.import_module(f"moevit.hw.units.{module}"), unit)(config)
    platform = RamPlatform()
    text = verilog.convert(component, name="top", platform=platform, emit_src=False)
    return f"{text}\n{platform.modules}"


def resources(name: str, config: AcceleratorConfig) -> Resources:
    """What a unit takes on UltraScale+."""
    (unit,) = flow.synthesise(verilog_of(name, config), "top", lambda unit, done, of: None)
    assert not unit.result.unmapped
    return unit.resources


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MOEVIT_CACHE", str(tmp_path / "cache"))


def test_two_products_share_a_multiplier() -> None:
    packed = dataclasses.replace(CONFIGS["zcu104"], rows=2, columns=8, depth=8, weight_ports=1, tile_depth=64)
    used = resources("dot_product.DotProduct", packed)
    assert used.dsp == packed.macs_per_cycle // 2
    # Cascades lie in the DSPs: outside are the accumulators, their copies, the row multiplexer and the operands.
    assert used.lut < 2 * 8 * 32 * 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ZCU104_MEMORIES)
def test_memories_map_to_memories(name: str) -> None:
    used = resources(name, CONFIGS["zcu104"])
    assert {"uram": used.uram, "bram36": used.bram36} == ZCU104_MEMORIES[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", LONGEST)
def test_depth(name: str, tmp_path: Path) -> None:
    source, report = tmp_path / "top.v", tmp_path / "report"
    source.write_text(verilog_of(name, CONFIGS["tiny"]))
    command = [sys.executable, "-c", SYNTHESISE, str(source), str(report)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    errors = [line for line in run.stdout.splitlines() if line.startswith("ERROR")]
    assert run.returncode == 0, errors or run.stderr[-500:]
    length = re.search(r"Longest topological path in top \(length=(\d+)\)", report.read_text())
    assert length is not None
    assert int(length[1]) <= LONGEST[name]
