"""The generated Verilog: its ports, that it is the same every time, and that Verilator finds no fault."""

import re
import subprocess
from pathlib import Path

import pytest

from moevit import registers, tools
from moevit.config import CONFIGS
from moevit.hw import verilog

#: Verilator's warnings about Yosys' way of writing, none of which is about what the text means: operands of
#: unequal widths are extended as Verilog says, cases are preceded by defaults, ports of a signature that one
#: side needs stay on the other, sizes that fit exactly make comparisons constant, and a signal of no bits (which row of
#: one, say) is declared as a wire that nothing uses.
WAIVED = (
    "WIDTHEXPAND", "WIDTHTRUNC", "CASEINCOMPLETE", "UNUSEDSIGNAL", "PROCASSINIT", "DECLFILENAME", "CMPCONST",
    "UNSIGNED", "ASCRANGE",
)  # fmt: skip


@pytest.fixture(scope="module")
def tiny():
    return verilog.generate(CONFIGS["tiny"], trace=True)


def top_ports(text):
    """Port name -> (direction, width) of the top module."""
    body = re.search(rf"^module {verilog.TOP}\(.*?^endmodule", text, re.M | re.S)[0]
    found = re.findall(r"^  (input|output) (?:\[(\d+):0\] )?(\w+);$", body, re.M)
    return {name: (direction, int(high or 0) + 1) for direction, high, name in found}


def test_ports(tiny):
    ports = top_ports(tiny)
    assert ports["clk"] == ports["rst"] == ("input", 1)
    assert ports["irq"] == ("output", 1)
    assert ports["s_axil_awaddr"] == ("input", registers.ADDRESS_WIDTH)
    assert ports["s_axil_rdata"] == ("output", 32)
    assert ports["m_axi_dma_araddr"] == ("output", 40)
    assert ports["m_axi_dma_wdata"] == ("output", 128)
    assert ports["m_axi_w0_rdata"] == ("input", 128)
    assert ports["m_axi_w0_rready"] == ("output", 1)
    assert ports["trace_act_data"] == ("output", 2 * 8 * 8)
    assert ports["trace_kv_mask"] == ("output", 32)
    assert ports["trace_load_mask"] == ("output", 2 * 8)
    assert [ports[f"trace_queue_{name}"][1] for name in ("clear", "expert", "token", "score")] == [1, 6, 13, 16]
    kinds = {re.match(r"clk|rst|irq|s_axil|m_axi_dma|m_axi_w0|trace", name)[0] for name in ports}
    assert len(kinds) == 7


def test_trace_is_an_option_and_the_rest_the_same(tiny):
    plain = verilog.generate(CONFIGS["tiny"])
    wanted = {name: port for name, port in top_ports(tiny).items() if not name.startswith("trace_")}
    assert top_ports(plain) == wanted
    assert plain == verilog.generate(CONFIGS["tiny"])
    assert not re.search(r"/(?:home|tmp|work|usr)/|\.py", plain)


def lint(text, folder):
    source = Path(folder) / f"{verilog.TOP}.v"
    source.write_text(text)
    options = [f"-Wno-{name}" for name in WAIVED]
    result = subprocess.run(
        [tools.find_verilator(), "--lint-only", "-Wall", *options, "--top-module", verilog.TOP, source],
        capture_output=True, text=True, check=False, env=tools.verilator_environment(),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[:4000]
    assert not result.stderr


def test_verilator_finds_no_fault(tiny, tmp_path):
    lint(tiny, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(CONFIGS) - {"tiny"}))
def test_verilator_finds_no_fault_in_other_configurations(name, tmp_path):
    lint(verilog.generate(CONFIGS[name]), tmp_path)


def test_register_header(tmp_path):
    """It is C, and says what the register map says."""
    text = verilog.register_header()
    header = tmp_path / "registers.h"
    header.write_text(text)
    subprocess.run([tools.require_cxx(), "-fsyntax-only", "-Wall", "-Werror", "-x", "c++", header], check=True)
    found = dict(re.findall(r"^#define (MOEVIT_\w+)\s+(\w+)", text, re.M))
    for register in registers.REGISTERS:
        assert int(found[f"MOEVIT_{register.name}"], 16) == register.offset
    for code in registers.ErrorCode:
        assert int(found[f"MOEVIT_ERROR_CODE_{code.name}"]) == code
    assert int(found["MOEVIT_STATUS_DRAINING"]) == 8
