"""`moevit configs`: the named configurations."""

from typing import TYPE_CHECKING, Any

import click

from moevit.cli.output import Output, json_command

if TYPE_CHECKING:
    from moevit.config import AcceleratorConfig

EXAMPLES = """
\b
Examples:
  moevit configs
  moevit configs zcu104 --json
  moevit configs mine.json
"""


@json_command(name="configs", epilog=EXAMPLES)
@click.argument("name", required=False, metavar="[NAME|FILE.json]")
def command(output: Output, name: str | None) -> dict[str, Any]:
    """List the named configurations, or show one.

    A configuration of your own is a JSON file with the same fields.
    """
    from moevit.config import CONFIGS, get_config

    configs = list(CONFIGS.values()) if name is None else [get_config(name)]
    if name is None:
        head = f"{'name':10} {'T×C×K':10} {'MAC/cycle':>9} {'clock':>8} {'weights+K/V':>12} {'activations':>12}  device"
        output.say(head)
        for config in configs:
            shape = f"{config.rows}×{config.columns}×{config.depth}"
            operand, activation = (f"{size >> 10} KiB" for size in _sizes(config))
            output.say(
                f"{config.name:10} {shape:10} {config.macs_per_cycle:9,} {config.clock_mhz:4g} MHz "
                f"{operand:>12} {activation:>12}  {config.device}"
            )
    else:
        for field, value in _describe(configs[0]).items():
            output.say(f"{field:20} {value}")
    return {"configs": [_describe(config) for config in configs]}


def _sizes(config: "AcceleratorConfig") -> tuple[int, int]:
    """Bytes of the operand and of the activation memory."""
    return config.operand_words * config.operand_word_bytes, config.activation_words * config.columns


def _describe(config: "AcceleratorConfig") -> dict[str, Any]:
    """All fields, and what follows from them."""
    operand, activation = _sizes(config)
    return config.to_dict() | {
        "digest": f"{config.digest:016x}",
        "macs_per_cycle": config.macs_per_cycle,
        "operand_bytes": operand,
        "activation_bytes": activation,
    }
