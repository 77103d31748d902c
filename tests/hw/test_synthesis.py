"""Units through open synthesis for UltraScale+: they map, and no path between registers is long.

Yosys counts cells: LUTs, carry blocks of four or eight bits and wide multiplexers alike, so that a 48-bit adder
alone is six or more. It does not move the registers around multipliers into the DSPs, which is why DSPs end paths.
"""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from amaranth.back import verilog

from moevit.config import CONFIGS
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
    "streamer.Streamer": 12,
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


@pytest.mark.slow
@pytest.mark.parametrize("name", LONGEST)
def test_depth(name: str, tmp_path: Path) -> None:
    module, unit = name.split(".")
    component = getattr(importlib.import_module(f"moevit.hw.units.{module}"), unit)(CONFIGS["tiny"])
    platform = RamPlatform()
    text = verilog.convert(component, name="top", platform=platform, emit_src=False)
    source, report = tmp_path / "top.v", tmp_path / "report"
    source.write_text(f"{text}\n{platform.modules}")
    command = [sys.executable, "-c", SYNTHESISE, str(source), str(report)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    errors = [line for line in run.stdout.splitlines() if line.startswith("ERROR")]
    assert run.returncode == 0, errors or run.stderr[-500:]
    length = re.search(r"Longest topological path in top \(length=(\d+)\)", report.read_text())
    assert length is not None
    assert int(length[1]) <= LONGEST[name]
