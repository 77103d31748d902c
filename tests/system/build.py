"""The verilated machine that the cocotb tests drive, built once per configuration and kept in `build/`."""

import fcntl
import hashlib
import os
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path

from cocotb_tools.runner import get_runner

from moevit import tools
from moevit.config import AcceleratorConfig
from moevit.hw.verilog import TOP, generate

FOLDER = Path(__file__).parents[2] / "build" / "system"

# The runner makes every signal of the design public, which costs most of the optimisation; ports are enough.
CONTROL = "\n".join(
    ["`verilator_config"]
    + [f'public_flat_rw -module "{TOP}" -var "{name}"' for name in ("clk", "rst", "irq", "s_axil_*", "m_axi_*")]
)
OPTIONS = [
    "--no-public-flat-rw", "--assert", "-O3", "--output-split", "20000", "-Wno-fatal", "-Wno-lint",
    "-Wno-style", "--x-assign", "fast", "--x-initial", "fast", "--no-timing", "-CFLAGS", "-O1",
]  # fmt: skip


def _digest(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:24]


def verilog(config: AcceleratorConfig) -> str:
    """The shipped Verilog, without trace ports; kept while nothing that it is made from changes."""
    sources = [path.read_bytes() for name in ("moevit.hw", "moevit") for path in _sources(name)]
    version = tools.package_version("amaranth") or ""
    path = FOLDER / f"{config.name}-{_digest(repr(config), version, *sources)}.v"
    if not path.is_file():
        _write(path, generate(config))
    return path.read_text()


def _sources(package: str) -> list[Path]:
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return sorted(Path(spec.origin).parent.rglob("*.py"))


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    os.replace(temporary, path)


def build(config: AcceleratorConfig) -> Path:
    """The folder with the executable; two processes do not build the same one at once."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with open(FOLDER / f".{config.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        text = verilog(config)
        versions = [*map(str, tools.tool_versions().items()), tools.package_version("cocotb") or ""]
        folder = FOLDER / f"{config.name}-{_digest(text, CONTROL, *OPTIONS, *versions)}"
        if not folder.is_dir():
            _verilate(text, folder)
    return folder


def _verilate(text: str, target: Path) -> None:
    """In a temporary folder, whose path has no spaces as make wants it; only the executable is kept."""
    with tempfile.TemporaryDirectory(prefix="moevit-system-") as name:
        folder = Path(name)
        (folder / f"{TOP}.v").write_text(text)
        (folder / "public.vlt").write_text(CONTROL + "\n")
        environment = tools.verilator_environment()
        saved = dict(os.environ)
        os.environ.update(environment)  # the runner looks for verilator on this process' PATH
        try:
            get_runner("verilator").build(
                sources=[folder / "public.vlt", folder / f"{TOP}.v"], hdl_toplevel=TOP, build_args=OPTIONS,
                build_dir=folder / "build", timescale=("1ns", "1ps"), log_file=folder / "build.log",
            )  # fmt: skip
        except BaseException:
            if (folder / "build.log").is_file():
                shutil.copy(folder / "build.log", target.with_suffix(".log"))
            raise
        finally:
            os.environ.clear()
            os.environ.update(saved)
        made = target.with_name(f".{target.name}.{os.getpid()}")
        made.mkdir(exist_ok=True)
        shutil.copy(folder / "build" / TOP, made)
        os.replace(made, target)
