# amaranth: UnusedElaboratable=no
# A board is made here for its ports only.
"""The way to the bitstream, with stand-ins for the tools: what is kept, what is reported, what is not written."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from moevit.boards.ulx3s import flow, report, toolchain
from moevit.boards.ulx3s.design import Design
from moevit.boards.ulx3s.gateware.board import TOP, Board
from moevit.boards.ulx3s.pins import PINS, constraints
from moevit.cli import cli
from moevit.errors import ConfigError, ToolError

COUNTS = {"LUT4": 100, "CCU2C": 10, "TRELLIS_DPR16X4": 2, "TRELLIS_FF": 50, "DP16KD": 191, "MULT18X18D": 128}


class Tools:
    """Stand-ins for the three tools. ``fmax`` is what nextpnr reports for the machine's clock."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fmax = 61.5
        self.fails = ""

    def yosys(self, script: Any, folder: Path, log: Path) -> None:
        self.calls.append("yosys")
        log.write_text("a log\nERROR: no luck\n")
        if self.fails == "yosys":
            raise ToolError("ERROR: no luck", where="yosys")
        assert (folder / flow.SOURCE).is_file()
        (folder / flow.NETLIST).write_text("{}")
        (folder / flow.CELLS).write_text("")
        (folder / flow.COUNTS).write_text(json.dumps({"modules": {f"\\{TOP}": {"num_cells_by_type": COUNTS}}}))

    def nextpnr(self, arguments: Any, folder: Path, log: Path, follow: Any) -> None:
        self.calls.append("nextpnr")
        inputs = [value for option, value in itertools.pairwise(arguments) if option in ("--json", "--lpf")]
        assert len(inputs) == 2
        for name in inputs:  # nextpnr, as WebAssembly, may see no folder but the one that it runs in
            assert Path(name).name == name and (folder / name).is_file()
        follow("Info: Packing LUTFFs..")
        follow("Info: iter=30 steplen=0.87 a=1.0 penalty=[0.0, 0.0]")
        follow("Info:   at iteration #5: temp = 0.000000, timing cost = 3864, wirelen = 440132")
        follow("Info:     iter=9 wires=926093 overused=1077 overuse=1 archfail=NA")
        log.write_text("a log\n")
        (folder / flow.ROUTED).write_text("")
        arc = {"delay": 1.5, "type": "logic", "from": {"cell": "a"}, "to": {"cell": "b"}}
        timing = {
            "fmax": {"$glbnet$clk": {"achieved": self.fmax, "constraint": 50.0}},
            "utilization": {"TRELLIS_FF": {"used": 50, "available": 83640}, "DP16KD": {"used": 191, "available": 208}},
            "critical_paths": [{"from": "posedge clk", "to": "posedge clk", "path": [arc, arc | {"type": "routing"}]}],
        }
        (folder / flow.TIMING).write_text(json.dumps(timing))

    def ecppack(self, arguments: Any, folder: Path, log: Path) -> None:
        self.calls.append("ecppack")
        log.write_text("")
        (folder / flow.BITSTREAM).write_bytes(b"bits")
        (folder / flow.SVF).write_text("svf")


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Tools:
    fake = Tools()
    for name in ("yosys", "nextpnr", "ecppack"):
        monkeypatch.setattr(toolchain, name, getattr(fake, name))
    monkeypatch.setattr(toolchain, "require", lambda *names: dict.fromkeys(names, "1.0"))
    monkeypatch.setattr(flow, "generate", lambda design: f"a machine of {design.config.name}")
    monkeypatch.setenv("MOEVIT_CACHE", str(tmp_path / "cache"))
    return fake


def test_build(tools: Tools, tmp_path: Path) -> None:
    said: list[str] = []
    values = flow.build(Design(), tmp_path / "out", announce=said.append)
    assert tools.calls == ["yosys", "nextpnr", "ecppack"]
    assert "nextpnr: placing, iteration 30 …" in said
    assert "nextpnr: refining the placement, iteration 5 …" in said
    assert "nextpnr: routing, iteration 9: 1,077 wires overused …" in said
    assert (tmp_path / "out" / flow.BITSTREAM).read_bytes() == b"bits"
    assert values["clocks"] == {"clk": {"fmax_mhz": 61.5, "wanted_mhz": 50.0, "met": True}}
    assert values["utilisation"]["EBR"] == {"used": 191, "available": 208, "percent": 91.8}
    path = {"from": "posedge clk", "to": "posedge clk", "ns": 3.0, "logic_ns": 1.5, "start": "b", "end": "b"}
    assert values["critical_paths"] == [path]
    assert json.loads((tmp_path / "out" / flow.REPORT["json"]).read_text()) == values
    text = (tmp_path / "out" / flow.REPORT["text"]).read_text()
    assert "61.50 MHz    50.00 MHz  met" in text
    # What is there is not made again; another seed is another placement of the same netlist.
    assert flow.build(Design(), tmp_path / "again", announce=said.append) == values
    assert tools.calls == ["yosys", "nextpnr", "ecppack"]
    flow.build(Design(), tmp_path / "again", seed=2, announce=said.append)
    assert tools.calls == ["yosys", "nextpnr", "ecppack", "nextpnr", "ecppack"]


def test_a_missed_clock_is_a_failure_without_a_bitstream(tools: Tools, tmp_path: Path) -> None:
    tools.fmax = 49.9
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / flow.BITSTREAM).write_bytes(b"of another build")
    result = CliRunner().invoke(cli, ["build", "ulx3s", "-o", str(tmp_path / "out")])
    assert "clock clk reaches 49.9 MHz, not 50 MHz: no bitstream was written" in result.stderr
    assert result.exit_code == 1
    assert not (tmp_path / "out" / flow.BITSTREAM).exists()
    assert "MISSED" in (tmp_path / "out" / flow.REPORT["text"]).read_text()


def test_a_clock_that_nobody_looked_at_is_missed() -> None:
    values = {"clocks": {}, "clock_mhz": 50.0}
    assert report.missed(values) == ["nextpnr has looked at no clock of 50 MHz, but 0 MHz at most"]


def test_synthesis_alone(tools: Tools, tmp_path: Path) -> None:
    values = flow.resources(Design(), tmp_path / "out", announce=lambda text: None)
    assert tools.calls == ["yosys"]
    assert values["utilisation"]["LUT4"] == {"used": 132, "available": 83640, "percent": 0.2}
    assert report.exceeded(values) == []
    assert flow.written(tmp_path / "out") == [*flow.REPORT.values(), flow.SYNTHESIS_LOG]
    values["utilisation"]["EBR"]["used"] = 209
    assert report.exceeded(values) == ["EBR 209 of 208"]


def test_a_tool_that_fails_leaves_its_log_and_nothing_else(tools: Tools, tmp_path: Path) -> None:
    tools.fails = "yosys"
    with pytest.raises(ToolError, match="yosys: ERROR: no luck; the whole log: ") as raised:
        flow.build(Design(), tmp_path / "out", announce=lambda text: None)
    log = Path(str(raised.value.mend).removeprefix("the whole log: "))
    assert "no luck" in log.read_text()
    assert not (tmp_path / "out").exists()
    assert [path.name for path in log.parent.iterdir()] == [log.name]


def test_a_missing_tool_names_the_extra() -> None:
    with pytest.raises(ToolError, match=r"no-such-tool was not found; install with `pip install 'moevit\[ulx3s\]'`"):
        toolchain.require("no-such-tool")


def test_every_port_has_a_pin() -> None:
    board = Board(Design())
    ports = {str(path[0]): len(signal) for path, _, signal in board.signature.flatten(board)}
    named = {f"{name}[{i}]" if width > 1 else name for name, width in ports.items() for i in range(width)}
    assert named == set(PINS)
    sites = [site for site, _ in PINS.values()]
    assert len(set(sites)) == len(sites)
    assert 'LOCATE COMP "clk_25mhz" SITE "G2";' in constraints()
    assert 'FREQUENCY PORT "clk_25mhz" 25 MHZ;' in constraints()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"packed_macs": True}, "a multiplier of the ECP5 holds one product"),
        ({"weight_ports": 2}, "one port for weights"),
        ({"clock_mhz": 51.3}, "51.3 MHz is no multiple of 2000000 baud"),
    ],
)
def test_configurations_that_do_not_suit_the_board(change: dict[str, Any], message: str) -> None:
    import dataclasses

    with pytest.raises(ConfigError, match=message):
        Design(config=dataclasses.replace(Design().config, **({"axi_data_width": 32} | change)))
