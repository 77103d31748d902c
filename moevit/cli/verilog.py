"""`moevit verilog`: a configuration's Verilog, register header and memory map."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moevit.cli.output import Output, json_command

if TYPE_CHECKING:
    from moevit.config import AcceleratorConfig

EXAMPLES = """
\b
Examples:
  moevit verilog --config tiny -o build/tiny
  moevit verilog --config mine.json -o build/mine --json
"""


@json_command(name="verilog", epilog=EXAMPLES)
@click.option("--config", "config_name", required=True, metavar="NAME|FILE.json", help="The machine.")
@click.option(
    "-o", "--output", "folder", required=True, type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
    help="Where the files go; made if it does not exist.",
)
@click.option("--trace-ports", is_flag=True, help="Add the outputs by which simulators see every tensor.")
def command(output: Output, config_name: str, folder: Path, trace_ports: bool) -> dict[str, Any]:
    """Write a configuration's Verilog, memory map and register header.

    The same configuration gives the same files.
    """
    started = time.perf_counter()
    from moevit.config import get_config

    config = get_config(config_name)
    folder.mkdir(parents=True, exist_ok=True)

    from moevit.hw.verilog import TOP, generate, register_header

    with output.progress(f"generating {config.name}"):
        verilog = generate(config, trace=trace_ports)
    files = {
        "verilog": (f"{TOP}.v", verilog),
        "registers": (f"{TOP}_registers.h", register_header()),
        "memory_map": ("memory_map.json", _pretty(memory_map(config))),
        "config": ("config.json", _pretty(config.to_dict())),
    }
    for name, text in files.values():
        (folder / name).write_text(text)
        output.say(f"{folder / name}: {len(text):,} bytes")
    return {
        "config": config.name,
        "config_digest": f"{config.digest:016x}",
        "top": TOP,
        "files": {what: folder / name for what, (name, _) in files.items()},
        "wall_s": time.perf_counter() - started,
    }


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"


def memory_map(config: "AcceleratorConfig") -> dict[str, Any]:
    """What a host and an integrator see: registers, error codes, buses, and the memories inside."""
    from dataclasses import asdict

    from moevit.registers import ADDRESS_WIDTH, REGISTERS, ErrorCode, Status

    memories = {
        "operand": (config.operand_words, config.operand_word_bytes),
        "activation": (config.activation_words, config.columns),
        "post": (config.post_words, config.post_word_bytes),
        "norm": (config.norm_words, config.norm_word_bytes),
        "a_tile": (2 * config.rows * config.tile_depth // config.columns, config.columns),
    }
    buses = [{"name": "m_axi_dma", "kind": "AXI4", "reads": True, "writes": True}]
    buses += [
        {"name": f"m_axi_w{p}", "kind": "AXI4", "reads": True, "writes": False} for p in range(config.weight_ports)
    ]
    return {
        "config": config.name,
        "config_digest": f"{config.digest:016x}",
        "control": {"name": "s_axil", "kind": "AXI4-Lite", "bytes": 1 << ADDRESS_WIDTH},
        "registers": [asdict(r) | {"access": str(r.access)} for r in REGISTERS],
        "status_bits": {str(s.name): int(s) for s in Status},
        "error_codes": {e.name: int(e) for e in ErrorCode},
        "masters": [b | {"data_bits": config.axi_data_width, "address_bits": config.axi_address_width} for b in buses],
        "memories": [
            {"name": name, "words": words, "word_bytes": size, "bytes": words * size}
            for name, (words, size) in memories.items()
        ],
    }
