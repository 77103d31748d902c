"""A Tcl interpreter with stand-ins for Vivado's commands, and what became of a script in it."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from moevit.boards.vivado import VERSION
from moevit.boards.vivado.recorder.cells import MODULE, PARAMETERS, PS, Cell
from moevit.boards.vivado.recorder.commands import COMMANDS, COMMON, Call, VivadoError, parse, refuse
from moevit.boards.vivado.recorder.design import BlockDesign
from moevit.errors import ToolError

Words = tuple[str, ...]
Options = dict[str, str]
Names = tuple[str, ...]

#: by the name in a board part: the part it has, and the bytes of its DRAM
BOARDS = {
    "xilinx.com:zcu104:part0:1.1": ("xczu7ev-ffvc1156-2-e", 2 << 30),
    "xilinx.com:zcu102:part0:3.4": ("xczu9eg-ffvb1156-2-e", 4 << 30),
    "xilinx.com:kv260_som:part0:1.4": ("xck26-sfvc784-2LV-c", 4 << 30),
}
CARRIERS = {"xilinx.com:kv260_som:part0:1.4": "som240_1_connector xilinx.com:kv260_carrier:som240_1_connector:1.3"}
STRATEGIES = {"synth_1": {"Flow_PerfOptimized_high"}, "impl_1": {"Performance_Explore", "Performance_ExtraTimingOpt"}}
STEPS = {"synth_1": ("synth_design",), "impl_1": ("opt_design", "place_design", "route_design", "write_bitstream")}
ROUTE_TYPES = {
    "UNPLACED", "UNPLACED_ALL", "UNROUTED", "PARTIAL", "GAPS", "CONFLICTS", "ANTENNAS", "NODRIVER", "MULTI_DRIVER",
    "LOCKED_NODES", "HAS_ROUTING", "INTRASITE", "NOLOADS", "HIERPORT", "ROUTED",
}  # fmt: skip
#: makes a command: a Tcl error with a text of its own, which `catch` can see, is made on Tcl's side
PROC = "proc %s {args} {lassign [moevit_call %s {*}$args] code value; return -code $code $value}"


@dataclass(kw_only=True)
class Outcome:
    """What a script did.

    status : its exit status
    messages : what it printed, errors too
    design : the block design
    calls : the commands, in order
    """

    status: int = 0
    messages: list[str] = field(default_factory=list)
    design: BlockDesign | None = None
    calls: list[Call] = field(default_factory=list)
    project: dict[str, str] = field(default_factory=dict)


class Vivado:
    """What the stand-ins share: a project, its files, a block design, runs.

    Parameters
    ----------
    version : that `version -short` says
    parts : device names that it knows; all that the boards have when None
    slacks : STATS.WNS, STATS.WHS and STATS.TPWS of the routed design
    bad_nets : by route type, names of nets
    failing : a run that does not complete
    """

    def __init__(
        self, *, version: str = VERSION, parts: set[str] | None = None, boards: set[str] | None = None,
        slacks: dict[str, str] | None = None, bad_nets: dict[str, list[str]] | None = None, failing: str = "",
    ) -> None:  # fmt: skip
        self.version = version
        self.boards = {b: v for b, v in BOARDS.items() if boards is None or b in boards}
        self.parts = {part for part, _ in BOARDS.values()} if parts is None else parts
        self.slacks = {"WNS": "0.021", "WHS": "0.010", "TPWS": "0.000"} | (slacks or {})
        self.bad_nets = bad_nets or {}
        self.failing = failing
        self.outcome = Outcome()
        self.project: dict[str, str] = {}
        self.files: dict[str, dict[str, str]] = {}
        self.folder = Path()
        self.design: BlockDesign | None = None
        self.validated = self.wrapped = self.opened = False
        self.exited = False
        self.runs: dict[str, dict[str, str]] = {}

    # The interpreter ----------------------------------------------------------------------------------------------

    def execute(self, path: Path) -> Outcome:
        """Source a script. Raises ToolError where Python has no Tcl."""
        try:
            import tkinter
        except ImportError as error:
            raise ToolError(
                "Python was built without Tcl", where="checking build.tcl",
                mend="install tkinter (on Debian and Ubuntu: `apt-get install python3-tk`)",
            ) from error  # fmt: skip
        tcl = tkinter.Tcl()
        tcl.createcommand("moevit_call", self._call(tcl))
        for name in COMMANDS:
            tcl.eval(PROC % (name, name))
        tcl.createcommand("moevit_exit", self._exit)
        tcl.createcommand("moevit_put", self._put)
        tcl.eval("proc exit {{status 0}} {moevit_exit $status; error EXIT}")
        tcl.eval("proc puts {args} {moevit_put {*}$args}")
        try:
            tcl.call("source", str(path))
        except tkinter.TclError as error:
            if not self.exited:
                self.outcome.status = 1
                self.outcome.messages.append(f"ERROR: {error}")
        self.outcome.design = self.design
        self.outcome.project = self.project
        return self.outcome

    def _call(self, tcl: Any) -> Callable[..., tuple[str, Any]]:
        def call(name: str, *words: str) -> tuple[str, Any]:
            try:
                parsed = parse(name, words)
                self.outcome.calls.append(parsed)
                quiet = "-quiet" in parsed.options
                options = {key: value for key, value in parsed.options.items() if key not in COMMON}
                found = getattr(self, f"do_{name}")(tcl, parsed.arguments, options)
                if found == () and not quiet and name.startswith("get_"):
                    refuse(f"[Common 17-55] {name} found nothing for {' '.join(parsed.arguments)}")
                return "ok", found if found is not None else ""
            except VivadoError as error:
                return "error", str(error)

        return call

    def _exit(self, status: str) -> None:
        self.outcome.status = int(status)
        self.exited = True

    def _put(self, *words: str) -> None:
        self.outcome.messages.append(words[-1])

    # Project ------------------------------------------------------------------------------------------------------

    def do_version(self, tcl: Any, arguments: Words, options: Options) -> str:
        if "-short" not in options:
            return f"Vivado v{self.version} (64-bit)"
        return self.version

    def do_get_parts(self, tcl: Any, arguments: Words, options: Options) -> Names:
        return tuple(p for p in sorted(self.parts) if not arguments or fnmatchcase(p, arguments[0]))

    def do_get_board_parts(self, tcl: Any, arguments: Words, options: Options) -> Names:
        return tuple(b for b in sorted(self.boards) if not arguments or fnmatchcase(b, arguments[0]))

    def do_create_project(self, tcl: Any, arguments: Words, options: Options) -> str:
        name, folder = arguments
        if options.get("-part") not in self.parts:
            refuse(f"[Coretcl 2-1000] no part '{options.get('-part')}'")
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.project = {"name": name, "part": options["-part"]}
        self.runs = {run: {"step": "", "directory": str(self.folder / f"{name}.runs" / run)} for run in STEPS}
        return f"project:{name}"

    def do_current_project(self, tcl: Any, arguments: Words, options: Options) -> str:
        if not self.project:
            refuse("[Common 17-36] no open project")
        return f"project:{self.project['name']}"

    def do_current_fileset(self, tcl: Any, arguments: Words, options: Options) -> str:
        self.do_current_project(tcl, (), {})
        return "fileset:sources_1"

    def do_add_files(self, tcl: Any, arguments: Words, options: Options) -> Names:
        self.do_current_project(tcl, (), {})
        fileset = options.get("-fileset", "sources_1")
        if fileset not in ("sources_1", "constrs_1", "sim_1"):
            refuse(f"[Common 17-55] no fileset '{fileset}'")
        names = []
        for path in tcl.splitlist(arguments[0]):
            if not Path(path).is_file():
                refuse(f"[Common 17-577] no file {path}")
            if (Path(path).suffix == ".xdc") != (fileset == "constrs_1"):
                refuse(f"[Vivado 12-172] {path} does not belong to {fileset}")
            self.files[path] = {}
            names.append(f"file:{path}")
        return tuple(names)

    def do_get_files(self, tcl: Any, arguments: Words, options: Options) -> Names:
        return tuple(f"file:{path}" for path in self.files if not arguments or Path(path).name == arguments[0])

    def do_update_compile_order(self, tcl: Any, arguments: Words, options: Options) -> None:
        self.do_current_project(tcl, (), {})

    def do_set_property(self, tcl: Any, arguments: Words, options: Options) -> None:
        if "-dict" in options:
            words = tcl.splitlist(options["-dict"])
            if len(words) % 2 or len(arguments) != 1:
                refuse("[Common 17-165] set_property -dict takes names with values, and objects")
            pairs, objects = list(zip(words[::2], words[1::2], strict=True)), arguments[0]
        else:
            if len(arguments) != 3:
                refuse("[Common 17-165] set_property takes a name, a value and objects")
            pairs, objects = [(arguments[0], arguments[1])], arguments[2]
        for handle in tcl.splitlist(objects):
            for name, value in pairs:
                self._set(handle, name, value)

    def _set(self, handle: str, name: str, value: str) -> None:
        """One property of one object."""
        kind, _, target = handle.partition(":")
        if kind == "bd_cell":
            self._design().cells[target].set(name, value)
        elif kind == "project" and name == "board_part":
            if value not in self.boards or self.boards[value][0] != self.project["part"]:
                refuse(f"[Board 49-71] board part '{value}' is unknown, or is not of {self.project['part']}")
            self.project[name] = value
        elif kind == "project" and name == "board_connections":
            if CARRIERS.get(self.project.get("board_part", "")) != value:
                refuse(f"[Board 49-89] no such connection: {value}")
            self.project[name] = value
        elif kind == "fileset" and name == "top":
            if value != "system_wrapper" or not self.wrapped:
                refuse(f"[filemgmt 20-730] no module '{value}'")
            self.project[name] = value
        elif kind == "file" and name in ("used_in_synthesis", "used_in_implementation") and value in ("true", "false"):
            self.files[target][name] = value
        elif kind == "run" and name == "strategy":
            if value not in STRATEGIES[target]:
                refuse(f"[Common 17-69] {target} has no strategy '{value}'")
            self.runs[target][name] = value
        else:
            refuse(f"[Common 17-54] {handle} has no property '{name}', or cannot have '{value}'")

    def do_get_property(self, tcl: Any, arguments: Words, options: Options) -> str:
        name, handle = arguments
        kind, _, target = handle.partition(":")
        if kind == "bd_cell":
            return self._design().cells[target].get(name)
        if kind == "run" and name in ("PROGRESS", "STATUS", "DIRECTORY"):
            run = self.runs[target]
            complete = run["step"] and target != self.failing
            status = f"{run['step']} {'Complete!' if complete else 'ERROR'}"
            return {"PROGRESS": "100%" if complete else "34%", "STATUS": status, "DIRECTORY": run["directory"]}[name]
        if kind == "run" and name.startswith("STATS.") and name.removeprefix("STATS.") in self.slacks:
            routed = self.runs[target]["step"] in ("route_design", "write_bitstream")
            return self.slacks[name.removeprefix("STATS.")] if routed else ""
        return refuse(f"[Common 17-54] {handle} has no property '{name}'")

    # Block design -------------------------------------------------------------------------------------------------

    def _design(self) -> BlockDesign:
        if self.design is None:
            refuse("[BD 5-104] no open block design")
        return self.design

    def do_create_bd_design(self, tcl: Any, arguments: Words, options: Options) -> str:
        self.do_current_project(tcl, (), {})
        self.design = BlockDesign(arguments[0])
        return arguments[0]

    def do_create_bd_cell(self, tcl: Any, arguments: Words, options: Options) -> str:
        (name,) = arguments
        if name in self._design().cells or not re.fullmatch(r"[A-Za-z]\w*", name):
            refuse(f"[BD 5-4] '{name}' is no name, or is taken")
        if options["-type"] == "ip":
            kind, source = options.get("-vlnv", ""), ""
            if kind not in PARAMETERS:
                refuse(f"[BD 5-390] no IP '{kind}' in the catalog")
        elif options["-type"] == "module":
            kind, source = MODULE, self._source_of(options.get("-reference", ""))
        else:
            refuse(f"[BD 5-7] no type '{options['-type']}'")
        self._design().cells[name] = Cell(name, kind, source=source)
        return f"bd_cell:{name}"

    def _source_of(self, module: str) -> str:
        """The file with a module among the project's sources."""
        for path in self.files:
            text = Path(path).read_text() if Path(path).suffix == ".v" else ""
            if re.search(rf"^module {re.escape(module)} ?\(", text, re.MULTILINE):
                return text
        return refuse(f"[filemgmt 56-195] no module '{module}' in the sources")

    def _objects(self, kind: str, arguments: Words, check: Callable[[str], object]) -> Names:
        for path in arguments:
            check(path)
        return tuple(f"{kind}:{path.lstrip('/')}" for path in arguments)

    def do_get_bd_cells(self, tcl: Any, arguments: Words, options: Options) -> Names:
        return self._objects("bd_cell", arguments, self._design().cell_of)

    def do_get_bd_pins(self, tcl: Any, arguments: Words, options: Options) -> Names:
        return self._objects("bd_pin", arguments, self._design().pin)

    def do_get_bd_intf_pins(self, tcl: Any, arguments: Words, options: Options) -> Names:
        return self._objects("bd_intf_pin", arguments, self._design().interface)

    def do_get_bd_addr_spaces(self, tcl: Any, arguments: Words, options: Options) -> Names:
        return self._objects("bd_addr_space", arguments, self._design().space)

    def do_get_bd_addr_segs(self, tcl: Any, arguments: Words, options: Options) -> Names:
        return self._objects("bd_addr_seg", arguments, self._design().segment)

    def do_apply_bd_automation(self, tcl: Any, arguments: Words, options: Options) -> None:
        cell = self._design().cells[self._target(tcl, "bd_cell", arguments[0])]
        if options["-rule"] != "xilinx.com:bd_rule:zynq_ultra_ps_e" or cell.kind != PS:
            refuse(f"[BD 5-145] no rule '{options['-rule']}' for {cell.kind}")
        if tcl.splitlist(options.get("-config", "")) != ("apply_board_preset", "1"):
            refuse(f"[BD 5-146] unknown configuration '{options.get('-config')}'")
        board = self.project.get("board_part")
        if board is None:
            refuse("[BD 5-147] the project has no board")
        cell.memory = self.boards[board][1]
        # What the boards' presets turn on: two masters, no HP port, the first fabric clock.
        cell.values |= {f"CONFIG.PSU__USE__M_AXI_GP{i}": "1" for i in (0, 1)}
        cell.values["CONFIG.PSU__FPGA_PL0_ENABLE"] = "1"

    @staticmethod
    def _target(tcl: Any, kind: str, objects: str) -> str:
        """The path in the handle of the one object in a list, which must be of a kind."""
        handles = tcl.splitlist(objects)
        found, _, target = handles[0].partition(":") if len(handles) == 1 else ("", "", "")
        if found != kind:
            refuse(f"[Common 17-161] '{objects}' is not one {kind}")
        return str(target)

    def do_connect_bd_net(self, tcl: Any, arguments: Words, options: Options) -> None:
        self._design().connect([self._target(tcl, "bd_pin", a) for a in arguments])

    def do_connect_bd_intf_net(self, tcl: Any, arguments: Words, options: Options) -> None:
        self._design().connect_interfaces(*(self._target(tcl, "bd_intf_pin", a) for a in arguments))

    def do_assign_bd_address(self, tcl: Any, arguments: Words, options: Options) -> None:
        space = self._target(tcl, "bd_addr_space", options.get("-target_address_space", ""))
        segment = self._target(tcl, "bd_addr_seg", arguments[0] if arguments else "")
        size = re.fullmatch(r"(\d+)([KMGT]?)", options.get("-range", ""))
        if size is None:
            refuse(f"[BD 41-69] no range '{options.get('-range')}'")
        try:
            offset = int(options.get("-offset", ""), 0)
        except ValueError:
            refuse(f"[BD 41-69] no offset '{options.get('-offset')}'")
        self._design().assign(space, segment, offset, int(size[1]) << 10 * " KMGT".index(size[2] or " "))

    def do_validate_bd_design(self, tcl: Any, arguments: Words, options: Options) -> None:
        self._design().validate()
        self.validated = True

    def do_save_bd_design(self, tcl: Any, arguments: Words, options: Options) -> None:
        path = self.folder / f"moevit.srcs/sources_1/bd/{self._design().name}/{self._design().name}.bd"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
        self.files[str(path)] = {}

    def do_generate_target(self, tcl: Any, arguments: Words, options: Options) -> None:
        if not self.validated or arguments[0] not in ("all", "synthesis", "implementation"):
            refuse("[BD 41-1028] the design was not validated, or there is no such target")
        self._target(tcl, "file", arguments[1])
        name = self._design().name
        handoff = self.folder / f"{self.project['name']}.gen/sources_1/bd/{name}/hw_handoff/{name}.hwh"
        handoff.parent.mkdir(parents=True, exist_ok=True)
        handoff.write_text("<EDKSYSTEM/>\n")

    def do_make_wrapper(self, tcl: Any, arguments: Words, options: Options) -> str:
        if "-top" not in options or not self._target(tcl, "file", options["-files"]).endswith(".bd"):
            refuse("[Vivado 12-102] make_wrapper needs -top and a block design's file")
        path = self.folder / f"{self._design().name}_wrapper.v"
        path.write_text(f"module {self._design().name}_wrapper ();\nendmodule\n")
        self.wrapped = True
        return str(path)

    # Runs ---------------------------------------------------------------------------------------------------------

    def do_get_runs(self, tcl: Any, arguments: Words, options: Options) -> Names:
        return tuple(f"run:{name}" for name in self.runs if not arguments or name == arguments[0])

    def do_launch_runs(self, tcl: Any, arguments: Words, options: Options) -> None:
        for name in arguments:
            if name not in self.runs or not options.get("-jobs", "1").isdigit():
                refuse(f"[Common 17-55] no run '{name}', or -jobs is no number")
            if self.project.get("top") is None:
                refuse("[Vivado 12-4473] the design has no top module")
            if name == "impl_1" and self.runs["synth_1"]["step"] != "synth_design":
                refuse("[Vivado 12-1017] synth_1 is not complete")
            step = options.get("-to_step", STEPS[name][0] if name == "synth_1" else "route_design")
            if step not in STEPS[name]:
                refuse(f"[Vivado 12-4372] {name} has no step '{step}'")
            self.runs[name]["step"] = step
            if step == "write_bitstream":
                folder = Path(self.runs[name]["directory"])
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{self.project['top']}.bit").write_text("bits\n")

    def do_wait_on_runs(self, tcl: Any, arguments: Words, options: Options) -> None:
        for name in arguments:
            if not self.runs.get(name, {}).get("step"):
                refuse(f"[Common 17-55] '{name}' was not launched")

    def do_open_run(self, tcl: Any, arguments: Words, options: Options) -> None:
        if not self.runs.get(arguments[0], {}).get("step"):
            refuse(f"[Project 1-585] '{arguments[0]}' is not complete")
        self.opened = True

    def do_close_design(self, tcl: Any, arguments: Words, options: Options) -> None:
        if not self.opened:
            refuse("[Project 1-589] no open design")
        self.opened = False

    def _report(self, options: Options) -> None:
        """A report of the open design."""
        if not self.opened:
            refuse("[Project 1-589] no open design")
        if "-file" in options:
            if not Path(options["-file"]).parent.is_dir():
                refuse(f"[Common 17-173] no folder for {options['-file']}")
            Path(options["-file"]).write_text("report\n")

    def do_report_route_status(self, tcl: Any, arguments: Words, options: Options) -> Names | None:
        self._report(options)
        kind = options.get("-route_type")
        if kind is not None and kind not in ROUTE_TYPES:
            refuse(f"[Route 35-1] no route type '{kind}'")
        return tuple(self.bad_nets.get(kind or "", ())) if "-return_nets" in options else None

    def do_report_utilization(self, tcl: Any, arguments: Words, options: Options) -> None:
        self._report(options)

    do_report_timing_summary = do_report_power = do_report_drc = do_report_methodology = do_report_utilization

    def do_write_hw_platform(self, tcl: Any, arguments: Words, options: Options) -> None:
        bit = Path(self.runs["impl_1"]["directory"]) / "system_wrapper.bit"
        if not arguments or not arguments[0].endswith(".xsa") or ("-include_bit" in options and not bit.is_file()):
            refuse("[Vivado 12-6072] no file.xsa is named, or there is no bitstream")
        Path(arguments[0]).write_text("platform\n")


def record(path: Path, **state: Any) -> Outcome:
    """Execute a script with a new stand-in for Vivado; see :class:`Vivado` for ``state``."""
    return Vivado(**state).execute(path)
