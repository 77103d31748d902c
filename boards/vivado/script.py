"""The Tcl that Vivado runs: block design, synthesis, implementation, reports, bitstream.

One file without procedures from elsewhere, as a person would write it for this one board; every value in it comes from
the configuration and the board's description. Commands are those of UG835, parameters of the processing system those of
PG201.
"""

from moevit.boards.vivado import TOP, VERSION
from moevit.boards.vivado.wrapper import REGISTERS, masters
from moevit.boards.zynq import HP_DATA_WIDTHS, MAX_PL_CLOCK_MHZ, Memory, ZynqBoard
from moevit.config import AcceleratorConfig
from moevit.errors import ConfigError
from moevit.registers import ADDRESS_WIDTH

CLOCK_TOLERANCE = 0.01  #: by which the fabric clock may be slower than asked for: it is divided from a fixed one
HP_OFFSET = 2  #: S_AXI_HP0_FPD is enabled as S_AXI_GP2
#: of a routed net, what is an error (UG912, ROUTE_STATUS)
ROUTE_ERRORS = ("UNPLACED", "UNROUTED", "PARTIAL", "GAPS", "CONFLICTS", "ANTENNAS")
SYNTHESIS, IMPLEMENTATION = "Flow_PerfOptimized_high", "Performance_Explore"


def ports_of_masters(config: AcceleratorConfig, board: ZynqBoard) -> dict[int, list[str]]:
    """Which masters share each HP port that is used: the weights one by one, and the DMA beside the last of them."""
    dma, *weights = masters(config)
    out: dict[int, list[str]] = {}
    for i, master in enumerate([*weights, dma]):
        port = board.hp_ports[min(i, len(board.hp_ports) - 1)]
        out.setdefault(port, []).append(master)
    return out


def script(config: AcceleratorConfig, board: ZynqBoard) -> str:
    """The text of ``build.tcl``.

    Raises
    ------
    ConfigError : the board cannot have such a machine: its bus or its clock
    """
    _require_fit(config, board)
    used = ports_of_masters(config, board)
    parts = [_head(config, board), _project(board), _processor(config, used), _machine()]
    parts += [_port(port, names) for port, names in used.items()]
    parts += [_addresses(board, used), _design(), _implement(), _RESULTS]
    return "\n".join(parts)


def _require_fit(config: AcceleratorConfig, board: ZynqBoard) -> None:
    where = f"configuration {config.name!r} on {board.name}"
    if config.axi_data_width not in HP_DATA_WIDTHS:
        raise ConfigError(
            f"the HP ports have no {config.axi_data_width} bits", where=where,
            mend=f"set axi_data_width to one of {', '.join(map(str, HP_DATA_WIDTHS))}",
        )  # fmt: skip
    if config.clock_mhz > MAX_PL_CLOCK_MHZ:
        raise ConfigError(f"no fabric clock has {config.clock_mhz:g} MHz", where=where, mend="lower clock_mhz")
    last = max(m.offset + m.size for m in board.memory) - 1
    if last >> config.axi_address_width:
        raise ConfigError(
            f"{config.axi_address_width} address bits do not reach all of the memory", where=where,
            mend=f"set axi_address_width to {last.bit_length()} or more",
        )  # fmt: skip


def _size(size: int) -> str:
    """A power of two as Vivado's ranges have it."""
    for unit, letter in ((1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K")):
        if size % unit == 0:
            return f"{size // unit}{letter}"
    return str(size)


def _head(config: AcceleratorConfig, board: ZynqBoard) -> str:
    return f"""\
# The machine of configuration {config.name} (digest {config.digest:016x}) on the {board.title}.
# Written by `moevit build {board.name}`. Run it anywhere with
#   vivado -mode batch -notrace -source build.tcl
set here [file dirname [file normalize [info script]]]
set jobs [expr {{[info exists ::env(MOEVIT_JOBS)] ? $::env(MOEVIT_JOBS) : 4}}]

proc fail {{what}} {{
    puts stderr "ERROR: moevit: $what"
    exit 1
}}

# The version that this is written for: IP, presets and defaults differ between versions.
if {{[catch {{version -short}} found]}} {{
    fail "this is no Vivado; run build.tcl with Vivado {VERSION}"
}}
if {{![string match "{VERSION}*" $found]}} {{
    fail "this is Vivado $found, and build.tcl is written for {VERSION}"
}}
if {{[llength [get_parts -quiet {board.part}]] == 0}} {{
    fail "this Vivado does not know {board.part}; install the device, and its licence if it needs one"
}}
set board_part [lindex [get_board_parts -quiet -latest_file_version {{{board.board_part}}}] 0]
if {{$board_part eq ""}} {{
    fail "this Vivado has no board files for {board.board_part}; install them from the Vivado Store"
}}
"""


def _project(board: ZynqBoard) -> str:
    connections = ""
    if board.connections:
        connections = f"set_property board_connections {{{board.connections}}} [current_project]\n"
    return f"""\
# Sources.
create_project -force -part {board.part} moevit $here/vivado
set_property board_part $board_part [current_project]
{connections}add_files -norecurse [list $here/moevit.v $here/{TOP}.v]
add_files -fileset constrs_1 -norecurse [list $here/moevit.xdc]
set_property used_in_synthesis false [get_files moevit.xdc]
update_compile_order -fileset sources_1
"""


def _processor(config: AcceleratorConfig, used: dict[int, list[str]]) -> str:
    settings = {
        # The registers are behind M_AXI_HPM0_FPD; what the preset turns on besides is turned off.
        "PSU__USE__M_AXI_GP0": 1, "PSU__MAXIGP0__DATA_WIDTH": 32, "PSU__USE__M_AXI_GP1": 0, "PSU__USE__M_AXI_GP2": 0,
        "PSU__USE__IRQ0": 1,
        "PSU__FPGA_PL0_ENABLE": 1, "PSU__CRL_APB__PL0_REF_CTRL__FREQMHZ": f"{config.clock_mhz:g}",
    }  # fmt: skip
    for port in used:
        gp = port + HP_OFFSET
        settings |= {f"PSU__USE__S_AXI_GP{gp}": 1, f"PSU__SAXIGP{gp}__DATA_WIDTH": config.axi_data_width}
    lines = "\n".join(f"    CONFIG.{name} {{{value}}} \\" for name, value in settings.items())
    slowest = config.clock_mhz * (1 - CLOCK_TOLERANCE)
    return f"""\
# The processing system, as the board has it.
create_bd_design system
create_bd_cell -type ip -vlnv xilinx.com:ip:zynq_ultra_ps_e ps
apply_bd_automation -rule xilinx.com:bd_rule:zynq_ultra_ps_e -config {{apply_board_preset "1"}} [get_bd_cells ps]
set_property -dict [list \\
{lines}
] [get_bd_cells ps]
set clock [get_property CONFIG.PSU__CRL_APB__PL0_REF_CTRL__ACT_FREQMHZ [get_bd_cells ps]]
if {{$clock > {config.clock_mhz:g} * 1.000001 || $clock < {slowest:g}}} {{
    fail "the processing system makes $clock MHz of the {config.clock_mhz:g} MHz that are wanted"
}}
"""


def _machine() -> str:
    return f"""\
# The machine, its reset, its registers and its interrupt. All run with the one clock.
create_bd_cell -type module -reference {TOP} moevit
create_bd_cell -type ip -vlnv xilinx.com:ip:proc_sys_reset reset
create_bd_cell -type ip -vlnv xilinx.com:ip:smartconnect control
set_property -dict [list CONFIG.NUM_SI {{1}} CONFIG.NUM_MI {{1}}] [get_bd_cells control]
connect_bd_net [get_bd_pins ps/pl_clk0] [get_bd_pins moevit/aclk] [get_bd_pins reset/slowest_sync_clk] \\
    [get_bd_pins control/aclk] [get_bd_pins ps/maxihpm0_fpd_aclk]
connect_bd_net [get_bd_pins ps/pl_resetn0] [get_bd_pins reset/ext_reset_in]
connect_bd_net [get_bd_pins reset/peripheral_aresetn] [get_bd_pins moevit/aresetn]
connect_bd_net [get_bd_pins reset/interconnect_aresetn] [get_bd_pins control/aresetn]
connect_bd_intf_net [get_bd_intf_pins ps/M_AXI_HPM0_FPD] [get_bd_intf_pins control/S00_AXI]
connect_bd_intf_net [get_bd_intf_pins control/M00_AXI] [get_bd_intf_pins moevit/{REGISTERS}]
connect_bd_net [get_bd_pins moevit/irq] [get_bd_pins ps/pl_ps_irq0]
"""


def _port(port: int, names: list[str]) -> str:
    lines = [
        f"# HP{port}: {', '.join(names)}.",
        f"create_bd_cell -type ip -vlnv xilinx.com:ip:smartconnect memory{port}",
        f"set_property -dict [list CONFIG.NUM_SI {{{len(names)}}} CONFIG.NUM_MI {{1}}] [get_bd_cells memory{port}]",
        f"connect_bd_net [get_bd_pins ps/pl_clk0] [get_bd_pins memory{port}/aclk] \\",
        f"    [get_bd_pins ps/saxihp{port}_fpd_aclk]",
        f"connect_bd_net [get_bd_pins reset/interconnect_aresetn] [get_bd_pins memory{port}/aresetn]",
    ]
    lines += [
        f"connect_bd_intf_net [get_bd_intf_pins moevit/{name}] [get_bd_intf_pins memory{port}/S{i:02}_AXI]"
        for i, name in enumerate(names)
    ]
    lines += [f"connect_bd_intf_net [get_bd_intf_pins memory{port}/M00_AXI] [get_bd_intf_pins ps/S_AXI_HP{port}_FPD]"]
    return "\n".join([*lines, ""])


def _addresses(board: ZynqBoard, used: dict[int, list[str]]) -> str:
    def assign(offset: int, size: int, space: str, segment: str) -> str:
        return (
            f"assign_bd_address -offset 0x{offset:X} -range {_size(size)} \\\n"
            f"    -target_address_space [get_bd_addr_spaces {space}] [get_bd_addr_segs {segment}]"
        )

    def segment(port: int, memory: Memory) -> str:
        return f"ps/SAXIGP{port + HP_OFFSET}/HP{port}_{memory.name}"

    registers = assign(board.register_base, 1 << ADDRESS_WIDTH, "ps/Data", f"moevit/{REGISTERS}/reg0")
    lines = ["# Who sees what where.", registers]
    lines += [
        assign(memory.offset, memory.size, f"moevit/{name}", segment(port, memory))
        for port, names in used.items()
        for name in names
        for memory in board.memory
    ]
    return "\n".join([*lines, ""])


def _design() -> str:
    return """\
validate_bd_design
save_bd_design
generate_target all [get_files system.bd]
add_files -norecurse [list [make_wrapper -files [get_files system.bd] -top]]
set_property top system_wrapper [current_fileset]
update_compile_order -fileset sources_1
"""


def _implement() -> str:
    return f"""\
# Synthesis and implementation, up to the routed design.
proc run {{name jobs args}} {{
    launch_runs $name -jobs $jobs {{*}}$args
    wait_on_runs $name
    if {{[get_property PROGRESS [get_runs $name]] ne "100%"}} {{
        set log $::here/vivado/moevit.runs/$name/runme.log
        fail "$name ended with \\"[get_property STATUS [get_runs $name]]\\"; see $log"
    }}
}}
set_property strategy {SYNTHESIS} [get_runs synth_1]
set_property strategy {IMPLEMENTATION} [get_runs impl_1]
run synth_1 $jobs
run impl_1 $jobs -to_step route_design
open_run impl_1

# Reports, also of a design that is refused below.
file mkdir $here/reports
report_utilization -file $here/reports/utilisation.txt
report_utilization -hierarchical -hierarchical_depth 4 -file $here/reports/utilisation_by_unit.txt
report_timing_summary -max_paths 20 -file $here/reports/timing.txt
report_route_status -file $here/reports/route.txt
report_power -file $here/reports/power.txt
report_drc -file $here/reports/drc.txt
report_methodology -file $here/reports/methodology.txt

# A design that does not work is no result.
foreach status {{{" ".join(ROUTE_ERRORS)}}} {{
    set nets [report_route_status -return_nets -route_type $status]
    if {{[llength $nets] > 0}} {{
        fail "[llength $nets] nets are $status, [lindex $nets 0] for one; see $here/reports/route.txt"
    }}
}}
foreach {{what slack}} {{setup WNS hold WHS "pulse width" TPWS}} {{
    set value [get_property STATS.$slack [get_runs impl_1]]
    if {{![string is double -strict $value]}} {{
        fail "no $what slack is known: $slack is \\"$value\\""
    }}
    if {{$value < 0}} {{
        fail "$what slack is negative: $slack = $value ns; see $here/reports/timing.txt"
    }}
    puts "moevit: $what slack: $slack = $value ns"
}}
"""


_RESULTS = """\
# The bitstream, its description for PYNQ under the same name, and the hardware platform.
close_design
run impl_1 $jobs -to_step write_bitstream
file copy -force [get_property DIRECTORY [get_runs impl_1]]/system_wrapper.bit $here/moevit.bit
file copy -force $here/vivado/moevit.gen/sources_1/bd/system/hw_handoff/system.hwh $here/moevit.hwh
write_hw_platform -fixed -include_bit -force $here/moevit.xsa
puts "moevit: done: $here/moevit.bit"
"""
