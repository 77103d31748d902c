"""`moevit build --synth`: cutting into units, counting cells and levels, joining paths, and what the command says."""

import json

import pytest
from click.testing import CliRunner

from moevit import tools
from moevit.boards.devices import BOARDS, get_board
from moevit.boards.synthesis import flow, hierarchy, netlist, report
from moevit.boards.synthesis.hierarchy import Hierarchy
from moevit.boards.synthesis.netlist import REGISTERS, LongestPath, Resources, Result
from moevit.boards.synthesis.paths import crossings
from moevit.cli import cli
from moevit.config import CONFIGS
from moevit.errors import ConfigError

LEAF = """
(* generator = "Amaranth" *)
module \\moevit.{name} (a, clk, y);
  reg \\$auto$verilog_backend.cc:2355:dump_module${number}  = 0;
  input [7:0] a;
  wire [7:0] a;
  input clk;
  output [15:0] y;
  reg [15:0] y;
  reg [7:0] \\$1 ;
  always @(posedge clk) begin
    \\$1  <= a;
    y <= \\$1  * \\$1 ;
  end
endmodule
"""

TOP = """
(* top =  1  *)
module moevit(a, clk, y);
  input [7:0] a;
  wire [7:0] a;
  input clk;
  output [15:0] y;
  wire [15:0] p;
  wire [15:0] q;
  reg [15:0] y;
  \\moevit.x  x (
    .a(a),
    .clk(clk),
    .y(p)
  );
  \\moevit.z  z (
    .a(p[7:0] + 8'd1),
    .clk(clk),
    .y(q)
  );
  always @(posedge clk) y <= p + q;
endmodule
"""

MACHINE = TOP + LEAF.format(name="x", number=1) + LEAF.format(name="z", number=2)


@pytest.fixture
def small_machine(monkeypatch, tmp_path):
    """A machine of three modules in place of the generator's, and an empty cache."""
    monkeypatch.setenv("MOEVIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("moevit.hw.verilog.generate", lambda config: MACHINE)
    return tmp_path / "out"


def test_every_board_names_a_configuration_that_exists():
    for name, board in BOARDS.items():
        assert get_board(name) is board
        assert board.config is None or board.config in CONFIGS
    with pytest.raises(ConfigError, match="zcu104, zcu102, kv260, ulx3s"):
        get_board("vcu118")


def test_units_are_stubbed_in_the_unit_above_and_equal_ones_are_one():
    top = Hierarchy(MACHINE).unit("moevit")
    assert list(top.children) == ["x", "z"]
    assert [path for path, _ in top.instances()] == ["", "x", "z"]
    assert top.children["x"].digest == top.children["z"].digest != top.digest
    assert top.source.count("(* blackbox *)") == 2
    assert "always" not in top.source.partition("(* blackbox *)")[2]
    assert "  output [15:0] y;" in top.source.partition("(* blackbox *)")[2]


def test_small_instances_stay_in_the_unit_above(monkeypatch):
    monkeypatch.setattr(hierarchy, "GROUPS", ())
    assert not Hierarchy(MACHINE).unit("moevit").children
    monkeypatch.setattr(hierarchy, "UNIT_BYTES", 100)
    assert list(Hierarchy(MACHINE).unit("moevit").children) == ["x", "z"]


def cell(kind, outputs, parameters=None, **pins):
    directions = {pin: "output" if pin in outputs else "input" for pin in pins}
    return {"type": kind, "connections": pins, "port_directions": directions, "parameters": parameters or {}}


def test_levels_are_counted_between_registers_and_to_ports():
    module = {
        "ports": {"i": {"direction": "input", "bits": [2]}, "o": {"direction": "output", "bits": [8]}},
        "netnames": {"start": {"bits": [3]}, "_9_": {"bits": [3]}, "end": {"bits": [7]}},
        "cells": {
            "f": cell("FDRE", {"Q"}, D=[2], Q=[3], C=[9], CE=["1"], R=["0"]),
            "a": cell("LUT2", {"O"}, I0=[3], I1=[2], O=[4]),
            "b": cell("CARRY4", {"O", "CO"}, S=[4], DI=["0"], CI=["0"], CYINIT=["0"], O=[5], CO=[6]),
            "c": cell("CARRY4", {"O", "CO"}, S=["0"], DI=["0"], CI=[6], CYINIT=["0"], O=[10], CO=[11]),
            "d": cell("MUXF7", {"O"}, I0=[10], I1=[5], S=[3], O=[12]),
            "g": cell("FDRE", {"Q"}, D=[12], Q=[7], C=[9], CE=["1"], R=["0"]),
            "e": cell("LUT1", {"O"}, I0=[7], O=[8]),
            "m": cell("DSP48E2", {"P"}, {"MREG": "1", "PREG": "0"}, A=[3], P=[13]),
            "u": cell("SOMETHING", {"P"}, A=[3], P=[14]),
            "s": cell("SRL16E", {"Q"}, D=[5], Q=[15], CLK=[9], A0=["1"], CE=["1"]),
            "child": cell("unit", {"y"}, a=[4], y=[16]),
        },
    }
    result = netlist.read(module, {"child"})
    assert result.resources == Resources(lut=3, lut_memory=1, ff=2, dsp=1)
    assert result.open_dsps == 1
    assert result.unmapped == {"SOMETHING": 1}
    assert result.paths[REGISTERS, REGISTERS] == LongestPath(2, "start", "end")
    assert result.paths["i", REGISTERS].levels == 2
    assert result.paths[REGISTERS, "o"] == LongestPath(1, "end", "o")
    assert result.paths[REGISTERS, "child/a"].levels == 1
    assert result.deep[2] == 2  # the register and the shift register


def result_of(paths):
    return Result(Resources(), {}, 0, {k: LongestPath(n, "s", "e") for k, n in paths.items()}, {})


def test_paths_are_joined_through_ports():
    top = result_of({("x/y", "z/a"): 1, ("x/y", REGISTERS): 2, ("z/loop", "z/a"): 1})
    leaf = result_of({(REGISTERS, "y"): 3, ("a", REGISTERS): 2, ("a", "loop"): 1, (REGISTERS, REGISTERS): 9})
    found = crossings([("", top), ("x", leaf), ("z", leaf)])
    assert [(c.levels, c.start, c.end) for c in found] == [(6, "x.s", "z.e"), (5, "x.s", "e")]
    assert found[0].through == ("x/y", "z/a")


def test_synthesis_end_to_end(small_machine):
    result = CliRunner().invoke(cli, ["build", "zcu104", "--synth", "-o", str(small_machine), "--json"])
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    assert values["device"]["part"] == "XCZU7EV-2"
    assert values["totals"]["dsp"] == 2
    assert values["percent"]["dsp"] == 0.1
    assert values["totals"]["ff"] == 16  # the others are in the DSPs
    units = {unit["name"]: unit for unit in values["units"]}
    assert units["moevit.x"]["instances"] == ["x", "z"]
    assert units["moevit"]["dsp"] == 0
    assert values["longest_crossing"]["end"] == "y"
    assert "[2/2]" in result.stderr
    written = json.loads((small_machine / "resources.json").read_text())
    assert written["totals"] == values["totals"]
    assert "moevit.x" in (small_machine / "resources.txt").read_text()

    again = CliRunner().invoke(cli, ["build", "zcu104", "--synth", "-o", str(small_machine)])
    assert again.exit_code == 0
    assert again.stderr.count("kept") == 2
    assert again.stdout == (small_machine / "resources.txt").read_text()


def test_a_device_that_is_too_small_is_a_failed_check(small_machine, monkeypatch):
    monkeypatch.setattr(report, "exceeded", lambda values: ["dsp 2 of 1"])
    result = CliRunner().invoke(cli, ["build", "zcu104", "--synth", "-o", str(small_machine)])
    assert result.exit_code == 1
    assert "too small: dsp 2 of 1" in result.stderr


def test_what_exceeds_a_device_is_named():
    values = {"totals": dict.fromkeys(report.LIMITED, 5), "device": dict.fromkeys(report.LIMITED, 5) | {"uram": 0}}
    assert report.exceeded(values) == ["uram 5 of 0"]
    values["device"]["uram"] = 5
    assert report.exceeded(values) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vcu118", "--synth"], "choose one of zcu104, zcu102, kv260"),
        (["zcu104", "--synth", "--config", "nonsense"], "no configuration named 'nonsense'"),
    ],
)
def test_mistakes_of_the_user(arguments, message, tmp_path):
    result = CliRunner().invoke(cli, ["build", *arguments, "-o", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_without_pyosys_it_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(tools, "package_version", lambda name: None)
    result = CliRunner().invoke(cli, ["build", "zcu104", "--synth", "-o", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "pip install" in result.stderr
    assert "pyosys" in result.stderr


def test_what_yosys_refuses_is_reported(small_machine, monkeypatch):
    monkeypatch.setattr("moevit.hw.verilog.generate", lambda config: TOP.replace("p + q", "p + nonsense(q)"))
    result = CliRunner().invoke(cli, ["build", "zcu104", "--synth", "-o", str(small_machine)])
    assert result.exit_code == 2
    assert "synthesis of moevit" in result.stderr
    assert (flow.cache_folder() / "failed-synthesis.log").is_file()
