"""The Vivado projects of the three boards: what their Tcl does with stand-ins for Vivado, and what stops it."""

import json
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from hw.test_verilog import WAIVED

from moevit import tools
from moevit.boards.devices import get_board
from moevit.boards.vivado import VERSION, project
from moevit.boards.vivado.recorder import Outcome, record
from moevit.boards.vivado.recorder.cells import MODULE, PS
from moevit.boards.vivado.wrapper import bus_ports, masters
from moevit.boards.zynq import get_zynq_board
from moevit.cli import cli
from moevit.config import CONFIGS, AcceleratorConfig, get_config
from moevit.errors import ConfigError, ToolError
from moevit.hw.verilog import port_list
from moevit.registers import ADDRESS_WIDTH

BOARDS = ("zcu104", "zcu102", "kv260")
MACHINE = "module moevit ();\nendmodule\n"  # the Tcl does not look into it


def config_of(board: str) -> AcceleratorConfig:
    name = get_board(board).config
    assert name is not None
    return get_config(name)


def written(board: str, folder: Path) -> Path:
    """A project's script, in a folder whose name has a space."""
    return project.write_project(MACHINE, config_of(board), get_zynq_board(board), folder / "a b")["script"]


def executed(board: str, folder: Path, change: tuple[str, str] | None = None, **state: object) -> Outcome:
    """What a script does, after a change to it."""
    path = written(board, folder)
    if change is not None:
        text = path.read_text()
        assert len(re.findall(change[0], text)) == 1, change[0]
        path.write_text(re.sub(change[0], change[1].replace("\\", "\\\\"), text))
    return record(path, **state)


@pytest.mark.parametrize("board", BOARDS)
def test_the_whole_script_runs(board: str, tmp_path: Path) -> None:
    outcome = executed(board, tmp_path)
    assert outcome.status == 0, outcome.messages
    folder = tmp_path / "a b"
    for name in (*project.RESULTS, *(f"reports/{r}.txt" for r in ("utilisation", "timing", "power", "route", "drc"))):
        assert (folder / name).is_file(), name
    config, zynq = config_of(board), get_zynq_board(board)
    assert outcome.project["part"] == zynq.part
    assert outcome.project["board_part"].split(":")[1] in zynq.board_part
    design = outcome.design
    assert design is not None

    # Clock and bus widths, as the processing system and the wrapper were given them.
    ps = next(cell for cell in design.cells.values() if cell.kind == PS)
    machine = next(cell for cell in design.cells.values() if cell.kind == MODULE)
    assert float(ps.get("CONFIG.PSU__CRL_APB__PL0_REF_CTRL__FREQMHZ")) == config.clock_mhz
    buses = machine.interfaces()
    assert sorted(buses) == sorted(["s_axil", *masters(config)])
    assert len(buses) == config.weight_ports + 2
    for name in masters(config):
        assert (buses[name].data_width, buses[name].address_width) == (config.axi_data_width, config.axi_address_width)
        (port,) = design.slaves_of(f"moevit/{name}")
        assert design.interface(port).data_width == config.axi_data_width
    assert design.driver("moevit/aclk") == "ps/pl_clk0"
    assert design.driver("ps/pl_ps_irq0") == "moevit/irq"

    # The address map: registers where the driver will look for them, and all of the memory for every master.
    description = json.loads((folder / project.DESCRIPTION).read_text())
    seen = {(a.space, a.segment): (a.offset, a.size) for a in design.assignments}
    registers = seen.pop(("ps/Data", "moevit/s_axil/reg0"))
    assert registers == (description["registers"]["address"], description["registers"]["size"]) == (
        zynq.register_base, 1 << ADDRESS_WIDTH
    )  # fmt: skip
    memory = sorted((m.offset, m.size) for m in zynq.memory)
    for name in masters(config):
        assert sorted(v for (space, _), v in seen.items() if space == f"moevit/{name}") == memory
    assert sum(size for _, size in memory) == ps.memory
    assert description["config_digest"] == f"{config.digest:016x}"
    assert AcceleratorConfig.from_dict(description["config"]) == config


@pytest.mark.parametrize("board", BOARDS)
def test_the_wrapper_has_every_port_of_the_machine_once(board: str) -> None:
    config = config_of(board)
    ports = bus_ports(config)
    assert sorted((p.name, p.direction, p.width) for p in ports if not p.tied) == sorted(
        p for p in port_list(config) if p[0] != "irq"
    )
    assert len({p.name for p in ports}) == len(ports)
    signals = {bus: {p.signal for p in ports if p.bus == bus} for bus in masters(config)}
    assert len({frozenset(s) for s in signals.values()}) == 1  # each master has all channels


#: a change to the script, and what it is stopped with
MISTAKES = {
    "switch": ("create_project -force", "create_project -overwrite", "unknown option '-overwrite'"),
    "argument": ("validate_bd_design", "validate_bd_design system", "1 arguments, not 0 … 0"),
    "value": (r"-to_step write_bitstream", "-to_step bitstream", "has no step 'bitstream'"),
    "command": ("save_bd_design", "store_bd_design", 'invalid command name "store_bd_design"'),
    "syntax": (r"set jobs \[", "set jobs [[", "invalid command name|missing close-bracket|wrong # args"),
    "property": ("PSU__USE__S_AXI_GP3", "PSU__USE_S_AXI_GP3", "has no property 'CONFIG.PSU__USE_S_AXI_GP3'"),
    "property's value": (r"(?<=SAXIGP3__DATA_WIDTH )\{128\}", "{256}", "cannot be '256'"),
    "read-only": (r"PL0_REF_CTRL__FREQMHZ", "PL0_REF_CTRL__ACT_FREQMHZ", "read-only"),
    "object's property": ("set_property top ", "set_property Top ", "has no property 'Top'"),
    "IP": ("ip:proc_sys_reset", "ip:proc_sys_rst", "no IP 'xilinx.com:ip:proc_sys_rst'"),
    "rule": ("bd_rule:zynq_ultra_ps_e", "bd_rule:zynq_ps", "no rule"),
    "module": ("-reference moevit_axi", "-reference moevit_axis", "no module 'moevit_axis'"),
    "pin": ("reset/slowest_sync_clk", "reset/slowest_clk", "has no pin 'slowest_clk'"),
    "interface": ("ps/S_AXI_HP2_FPD", "ps/S_AXI_HP4_FPD", "has no interface 'S_AXI_HP4_FPD'"),
    "disabled port": (r" *CONFIG.PSU__USE__S_AXI_GP4 \{1\} \\\n", "", r"has no pin 'saxihp2_fpd_aclk'"),
    "port too many": (r"(?<=M_AXI_GP1 )\{0\}", "{1}", "ps/maxihpm1_fpd_aclk is not connected"),
    "clock": (r" \[get_bd_pins control/aclk\]", "", "control/aclk is not connected to a valid clock"),
    "reset": ("connect_bd_net [^\n]*moevit/aresetn.\n", "", "moevit/aresetn is not connected to a valid reset"),
    "polarity": ("reset/peripheral_aresetn", "reset/peripheral_reset", "different polarities"),
    "kind of pin": (r"\[get_bd_pins moevit/irq\]", "[get_bd_pins reset/mb_reset]",
                    "is of kind interrupt, and reset/mb_reset of kind reset"),
    "bus": ("connect_bd_intf_net [^\n]*moevit/m_axi_w1[^\n]*\n", "", "HP1_DDR_LOW is not connected to moevit/m_axi_w1"),
    "direction": (r"(?<=control/M00_AXI\] )\[get_bd_intf_pins moevit/s_axil\]", "[get_bd_intf_pins moevit/m_axi_w0]",
                  "both masters"),
    "segment": ("SAXIGP4/HP2_DDR_LOW", "SAXIGP3/HP2_DDR_LOW", "has no address segment"),
    "other master's segment": ("SAXIGP4/HP2_DDR_LOW", "SAXIGP3/HP1_DDR_LOW", "is not connected to"),
    "offset": ("-offset 0xA0000000", "-offset 0xA0000800", "is not aligned"),
    "range": ("-range 4K", "-range 8K", "outside the segment"),
    "file": ("here/moevit.xdc", "here/moevit.sdc", "no file"),
    "order": ("run synth_1 .jobs\n", "", "synth_1 is not complete"),
    "strategy": ("Performance_Explore", "Performance_Explorer", "no strategy 'Performance_Explorer'"),
    "route type": ("UNROUTED", "NOTROUTED", "no route type 'NOTROUTED'"),
    "platform": (r"moevit\.xsa", "moevit.hdf", "no file.xsa"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_script_is_found(mistake: str, tmp_path: Path) -> None:
    pattern, replacement, message = MISTAKES[mistake]
    outcome = executed("kv260", tmp_path, (pattern, replacement))
    assert outcome.status != 0
    assert re.search(message, outcome.messages[-1]), outcome.messages


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"version": "2024.1"}, f"this is Vivado 2024.1, and build.tcl is written for {VERSION}"),
        ({"parts": set()}, "this Vivado does not know xczu7ev-ffvc1156-2-e"),
        ({"boards": set()}, r"has no board files for \*:zcu104:\*"),
        ({"slacks": {"WNS": "-0.003"}}, "setup slack is negative: WNS = -0.003 ns"),
        ({"slacks": {"WHS": "-0.1"}}, "hold slack is negative: WHS = -0.1 ns"),
        ({"slacks": {"TPWS": "-0.5"}}, "pulse width slack is negative"),
        ({"slacks": {"WNS": ""}}, "no setup slack is known"),
        ({"bad_nets": {"UNROUTED": ["a/b", "c"]}}, "2 nets are UNROUTED, a/b for one"),
        ({"bad_nets": {"CONFLICTS": ["a"]}}, "1 nets are CONFLICTS"),
        ({"failing": "synth_1"}, 'synth_1 ended with "synth_design ERROR"'),
        ({"failing": "impl_1"}, 'impl_1 ended with "route_design ERROR"'),
    ],
)
def test_what_stops_a_build(state: dict[str, object], message: str, tmp_path: Path) -> None:
    outcome = executed("zcu104", tmp_path, **state)
    assert outcome.status == 1
    assert re.search(message, outcome.messages[-1]), outcome.messages
    assert not (tmp_path / "a b" / "moevit.bit").exists()


def test_it_is_no_script_for_a_plain_tclsh(tmp_path: Path) -> None:
    """Where `version` does not exist, which is what any Tcl but Vivado's says."""
    outcome = executed("zcu104", tmp_path, (r"version -short", "no_such_command"))
    assert outcome.status == 1
    assert "this is no Vivado" in outcome.messages[-1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axi_data_width": 256, "weight_ports": 2}, "the HP ports have no 256 bits"),
        ({"clock_mhz": 500.0}, "no fabric clock has 500 MHz"),
        ({"axi_address_width": 32}, "32 address bits do not reach all of the memory"),
    ],
)
def test_machines_that_a_board_cannot_have(changes: dict, message: str, tmp_path: Path) -> None:
    config = AcceleratorConfig.from_dict(CONFIGS["zcu102"].to_dict() | changes)
    with pytest.raises(ConfigError, match=message):
        project.write_project(MACHINE, config, get_zynq_board("zcu102"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# -- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moevit.hw.verilog.generate", lambda config: MACHINE)
    monkeypatch.setattr(project, "find_vivado", lambda: None)


@pytest.mark.usefixtures("quick")
def test_without_vivado_the_project_is_written_and_the_status_is_3(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    result = CliRunner().invoke(cli, ["build", "kv260", "-o", str(folder)])
    assert result.exit_code == 3, result.output
    assert f"run this where Vivado {VERSION} is: vivado -mode batch" in result.stderr
    assert "it has not run in Vivado" in result.stdout
    assert sorted(p.name for p in folder.iterdir()) == [
        "build.tcl", "moevit.json", "moevit.v", "moevit.xdc", "moevit_axi.v",
    ]  # fmt: skip


@pytest.mark.usefixtures("quick")
def test_without_tkinter_the_tcl_is_not_checked_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moevit.cli.build.find_spec", lambda name: None)
    result = CliRunner().invoke(cli, ["build", "zcu104", "-o", str(tmp_path)])
    assert result.exit_code == 3, result.output
    assert "was not checked" in result.stdout and "it has not run" not in result.stdout
    monkeypatch.setitem(sys.modules, "tkinter", None)
    with pytest.raises(ToolError, match="Python was built without Tcl; install tkinter"):
        record(tmp_path / "build.tcl")


@pytest.mark.usefixtures("quick")
def test_a_board_without_a_flow_says_so(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["build", "vcu118", "-o", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "choose one of" in result.stderr
    assert not (tmp_path / "out").exists()


FAKE = """#!/bin/sh
echo "$@" > arguments
{action}
"""


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("action", "status", "message"),
    [
        ("touch moevit.bit moevit.hwh moevit.xsa", 0, "moevit.bit"),
        ("echo 'ERROR: moevit: setup slack is negative: WNS = -1 ns' > vivado.log; exit 1", 2, "slack is negative"),
        ("touch moevit.bit", 2, "without moevit.hwh, moevit.xsa"),
        ("exit 9", 2, "exit status 9"),
    ],
)
def test_where_vivado_is_it_runs(
    action: str, status: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vivado = tmp_path / "vivado"
    vivado.write_text(FAKE.format(action=action))
    vivado.chmod(vivado.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(project, "find_vivado", lambda: str(vivado))
    folder = tmp_path / "out"
    result = CliRunner().invoke(cli, ["build", "zcu104", "-o", str(folder)])
    assert result.exit_code == status, result.output
    assert message in result.output
    assert (folder / "arguments").read_text().split() == project.command(folder)[1:]


def test_vivado_is_found_by_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("XILINX_VIVADO", raising=False)
    assert project.find_vivado() is None
    program = tmp_path / "Vivado" / "bin" / "vivado"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("XILINX_VIVADO", str(tmp_path / "Vivado"))
    assert project.find_vivado() == str(program)


# -- the Verilog ---------------------------------------------------------------------------------------------------


def check_verilog(config: AcceleratorConfig, board: str, folder: Path) -> None:
    """The whole of it as Verilator reads it, and what connects the machine as Yosys does."""
    from pyosys import libyosys

    from moevit.hw.verilog import generate

    files = project.write_project(generate(config), config, get_zynq_board(board), folder)
    waived = [f"-Wno-{name}" for name in WAIVED]
    lint = [str(tools.find_verilator()), "--lint-only", "-Wall", *waived, "--top-module", "moevit_axi"]
    result = subprocess.run(
        [*lint, str(files["wrapper"]), str(files["machine"])], env=tools.verilator_environment(), text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[:2000]
    assert not result.stderr
    design = libyosys.Design()
    for line in (
        f"read_verilog {files['wrapper']} {files['machine']}", "hierarchy -check -top moevit_axi",
        "select moevit_axi", "proc", "check -assert",
    ):  # fmt: skip
        libyosys.run_pass(line, design)


def test_the_verilog_of_a_small_machine_passes_lint_and_synthesis(tmp_path: Path) -> None:
    check_verilog(CONFIGS["tiny"], "zcu104", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("board", BOARDS)
def test_the_verilog_of_each_board_passes_lint_and_synthesis(board: str, tmp_path: Path) -> None:
    check_verilog(config_of(board), board, tmp_path)
