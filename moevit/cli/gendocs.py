"""`python -m moevit.cli.gendocs`: writes docs/isa.md, docs/registers.md and docs/energy.md from what they describe.

Fields, opcodes, registers, codes and their meanings come from :mod:`moevit.isa.formats` and
:mod:`moevit.registers`. Here is only what those cannot say: how instructions work together.
"""

import dataclasses
import enum
import inspect
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from moevit import registers
from moevit.cli.energy_page import GENERATED, energy_page
from moevit.cli.operators_page import operators_page
from moevit.config import COMPUTE_QUEUE_DEPTH, DMA_QUEUE_DEPTH, STREAM_QUEUE_DEPTH
from moevit.isa import FORMATS, INSTRUCTION_BYTES, INSTRUCTION_WIDTH, ISA_VERSION, Field, Instruction
from moevit.isa.fields import OPCODE_WIDTH
from moevit.isa.formats import BLOCK_BYTES, Attention, Begin, DmaIn, DmaOut, End, Linear, Stream
from moevit.numerics.route import MAX_EXPERTS, MAX_TOP_K

DOCS = Path(__file__).resolve().parents[2] / "docs"
WIDTH = 116  #: of running text


@dataclass(frozen=True, kw_only=True)
class Notes:
    """What a format does not say of its instruction.

    unit : who executes it
    waits : what it waits for before it begins
    complete : when it retires, or is over
    refused : what stops the program, beyond fields out of range: (error code, condition)
    cycles : how long it takes, where that can be said
    """

    unit: str
    waits: str
    complete: str
    refused: tuple[tuple[registers.ErrorCode, str], ...] = ()
    cycles: str = ""


_ILLEGAL = registers.ErrorCode.ILLEGAL_INSTRUCTION
_AT_BEST = "if nothing keeps the array waiting"
_STREAM_ORDER = (
    "Streams are taken in program order, but LINEAR instructions do not name them: each takes the next words "
    "of the rings."
)

NOTES: dict[type[Instruction], Notes] = {
    Begin: Notes(
        unit="fetch",
        waits="nothing; it is the first thing that a start reads",
        complete="It is over when it has been checked. It does not retire.",
        refused=(
            (_ILLEGAL, "it is not the first instruction, or the first one is not a BEGIN with this `magic`"),
            (registers.ErrorCode.WRONG_CONFIGURATION, "`version` or `digest` is not this machine's"),
            (_ILLEGAL, "`ring_words` is more than the operand memory has"),
            (registers.ErrorCode.IMAGE_RANGE, "`count` instructions reach beyond the image"),
        ),
    ),
    End: Notes(
        unit="dispatch",
        waits="all instructions before it: retired, and every STREAM's last word written",
        complete="Raises done. It does not retire.",
        refused=((_ILLEGAL, "it is not the last of BEGIN's `count` instructions, or that one is not an END"),),
    ),
    Stream: Notes(
        unit=f"streamer, queue of {STREAM_QUEUE_DEPTH}",
        waits="nothing to request, unless it is `predicated`; each word for room in its ring",
        complete=f"It is over when its last word is in its ring, or when it is skipped. It does not retire. "
        f"{_STREAM_ORDER}",
        refused=(
            (_ILLEGAL, "it is `predicated` and brings norm words"),
            (registers.ErrorCode.IMAGE_RANGE, "a part ends beyond the image"),
        ),
        cycles="words × word bytes ÷ (`weight_ports` × bus bytes) for each part, if DRAM delivers; 4 if it is skipped",
    ),
    DmaIn: Notes(
        unit=f"DMA, queue of {DMA_QUEUE_DEPTH}",
        waits="`wait` retired instructions, and the DMA instructions before it",
        complete="Retires when its last byte is in the activation memory.",
        refused=(
            (registers.ErrorCode.INPUT_RANGE, "it reads beyond the input buffer"),
            (registers.ErrorCode.IMAGE_RANGE, "it reads beyond the image"),
            (registers.ErrorCode.ACTIVATION_RANGE, "it writes beyond the activation memory"),
        ),
        cycles="a bus word per cycle within a segment, if DRAM delivers",
    ),
    DmaOut: Notes(
        unit=f"DMA, queue of {DMA_QUEUE_DEPTH}",
        waits="`wait` retired instructions, and the DMA instructions before it",
        complete="Retires when the last write has been answered.",
        refused=(
            (_ILLEGAL, "`offset` is no multiple of the bus word"),
            (registers.ErrorCode.OUTPUT_RANGE, "it writes beyond the output buffer"),
            (registers.ErrorCode.ACTIVATION_RANGE, "it reads beyond the activation memory"),
        ),
        cycles="a word of activation memory, or a bus word, per cycle",
    ),
    Linear: Notes(
        unit=f"loader, array, POST; queue of {COMPUTE_QUEUE_DEPTH} before the loader",
        waits=(
            "`wait` retired instructions before its first read; its parameters and weights word by word. With "
            "`gather` or `scatter` also to know whether its STREAM has brought them"
        ),
        complete=(
            "Retires when its last row is written, or a gate's last token is in its queues. The loader begins the next "
            "instruction long before."
        ),
        refused=(
            (_ILLEGAL, "`length` is more than `tile_depth`"),
            (_ILLEGAL, "`tiles` is more than `post_words`, or the norm words more than `norm_words`"),
            (
                _ILLEGAL,
                "its weights are read again (more than T rows, or `release` = 0) or an expert's (`gather` or "
                "`scatter`), and are more than the ring",
            ),
            (_ILLEGAL, "the input is 16-bit (`norm` is not none) and `src` or `src_stride` odd"),
            (_ILLEGAL, "the output is int16 and `dst` or `dst_stride` odd"),
            (_ILLEGAL, "`residual` = 1 and `res` or `dst_stride` odd"),
            (_ILLEGAL, "not `key_tile` ≤ `value_tile` ≤ `tiles`, or `key_tile` < `tiles` and `token` no multiple of T"),
            (_ILLEGAL, "`keep` = 1 with no `norm`, or with `gather` or `scatter`"),
            (
                _ILLEGAL,
                f"it is a gate and not 1 ≤ `top_k` ≤ min({MAX_TOP_K}, `experts`), or `experts` is more than "
                f"{MAX_EXPERTS} or than its outputs (`tiles` × C)",
            ),
            (_ILLEGAL, "it is a gate with `residual`, an `activation` or K and V tiles"),
            (_ILLEGAL, "`gather` or `scatter` with `norm`, `release` = 0, K and V tiles or `route`"),
            (_ILLEGAL, "`scatter` without `residual`, with another output than int16 or with an `activation`"),
            (registers.ErrorCode.QUEUE_RANGE, "its queue holds more than `n_rows`, or a gate finds the queues full"),
            (registers.ErrorCode.ACTIVATION_RANGE, "a row lies beyond the activation memory"),
            (registers.ErrorCode.OPERAND_RANGE, "it writes K or V outside the K/V region"),
        ),
        cycles=(
            f"ceil(`n_rows` / T) × `tiles` × max(ceil(`length` / K), T, C / K), {_AT_BEST}; the rows of `gather` and "
            "`scatter` are those of the queue"
        ),
    ),
    Attention: Notes(
        unit=f"loader, array, POST; queue of {COMPUTE_QUEUE_DEPTH} before the loader",
        waits="`wait` retired instructions before its first read",
        complete="Retires when its last row is written. The loader begins the next instruction long before.",
        refused=(
            (_ILLEGAL, "`n_keys` or `head_dim` is more than `tile_depth`"),
            (registers.ErrorCode.OPERAND_RANGE, "it reads outside the K/V region"),
            (registers.ErrorCode.ACTIVATION_RANGE, "a row lies beyond the activation memory"),
        ),
        cycles=(
            "`heads` × ceil(`n_rows` / T) × (ceil(`n_keys` / C) × max(ceil(`head_dim` / K), T, C / K) + "
            f"ceil(`head_dim` / C) × max(ceil(`n_keys` / K), T, C / K)), {_AT_BEST}"
        ),
    ),
}

_ISA_INTRODUCTION = f"""\
Instruction set version {ISA_VERSION}. A program is a sequence of instructions of {INSTRUCTION_BYTES}
bytes in the weight image, from a BEGIN to an END. An image holds one program per task; starting another
task is starting at another BEGIN.

T, C and K are the array's rows, columns and depth; other names in code style are fields of the
instruction or of the configuration. [microarchitecture.md](microarchitecture.md) describes the units
and the layout of data in their memories.

## Encoding

An instruction is a little-endian number of {INSTRUCTION_WIDTH} bits: the opcode in bits {
    OPCODE_WIDTH - 1
}:0, the fields directly above it in the order of the tables, bits above the last field zero. All
fields are unsigned. `moevit.isa` encodes, decodes, assembles and disassembles; the text form is the
mnemonic followed by `field=value` pairs, with the names of enumerated values, and leaves out fields at
their default.

## Order

Instructions are dispatched in program order to three units that work at the same time: the streamer,
the DMA unit, and the loader with the array and POST behind it. Each unit executes its own in order. One
whose queue is full keeps those behind it waiting, whatever unit these are for.

DMA_IN, DMA_OUT, LINEAR and ATTENTION *retire* when their results are written, in program order. The
*retired count* starts at 0 with each program. An instruction with a `wait` field begins to read when
the retired count has reached `wait`: the position, among those that retire, of the last one whose
results it reads or whose inputs it overwrites, counted from 1. The comparison is modulo 2^16, so `wait`
must lie within 2^15 of the retired count. Nothing else orders instructions of different units; the
compiler's hazard checker proves that it suffices.

Weights and parameters are no part of this order. STREAM puts them into three rings (operand words, POST
words, norm words), and LINEAR takes them out in the same sequence, each word when it has come;
`release` = 0 leaves them for the next LINEAR. If an instruction waits for what no STREAM brings, or for
a retired count that is never reached, the machine stops with `{registers.ErrorCode.STALLED.name}`.

A mixture of experts is a gate, which is a LINEAR with `route`, and then for each expert a predicated
STREAM and a LINEAR with `gather`, and one of each with `scatter`. The gate fills the queues, one per
expert; LINEAR and STREAM of an expert `wait` for it. A LINEAR with `gather` or `scatter` reads no
weights if its queue is empty, and frees those that a speculative STREAM has brought. There must be
exactly one predicated STREAM of the same queue for each such LINEAR, in the same order.

## Errors

Each instruction is checked before it is dispatched: its opcode, its fields' ranges, bits that belong to
no field, and what its section lists. An address is checked where it is used. What fails stops the
machine with an error code and the instruction's number (see [registers.md](registers.md)); nothing
outside the buffers and memories is read or written.
"""

_REGISTERS_INTRODUCTION = f"""\
The AXI4-Lite port has 32-bit registers and {registers.ADDRESS_WIDTH} address bits; bits 1:0 of an
address are ignored. Version {registers.VERSION >> 16}.{registers.VERSION & 0xFFFF} of this map. Byte
strobes are obeyed. A read or write that a register does not allow, and one of any other offset, is
answered with SLVERR and does nothing. So is a write of an address that is not aligned as its register
says or wider than the bus, and a start while BUSY or ERROR is set or together with a soft reset.
`moevit verilog` writes a C header of this page.
"""

_SEQUENCE = """\
## How to run a program

1. Read IDENTITY, VERSION and the digest: the program must have been compiled for this digest.
2. Write the addresses and sizes of the image, the input and the output, the task's PROGRAM, and
INTERRUPT_ENABLE.
3. Write 1 to CONTROL. The registers of step 2 are taken over at that moment: those of the next run may
be written while this one is busy.
4. Wait for the interrupt, or for STATUS. With done, the output is in memory and no transfer is
outstanding. Clear INTERRUPT_STATUS.

A program needs no reset before the next. On an error the machine stops reading and writing, completes
the transfers that are outstanding (BUSY and DRAINING), and then shows ERROR alone and raises the
interrupt. Only a soft reset (2 to CONTROL) leads on; it may be written at any time, and is over when
STATUS is 0. It clears done, the error and INTERRUPT_STATUS; addresses, sizes and INTERRUPT_ENABLE stay.
"""

_ERROR_NOTE = """\
ERROR_INSTRUCTION counts from BEGIN, which is 0. It is exact for instructions that are refused before
they are dispatched, and for the DMA unit's. Where POST finds an address out of range or the queues full
it is the oldest LINEAR or ATTENTION that has not retired, where the loader finds the one or a queue too
long the one it has begun last; STALLED names the oldest that has not retired. Weights are read far
ahead: BUS_STREAM, an IMAGE_RANGE of a STREAM, and BUS_FETCH give the number of instructions that had been fetched.
"""

_COUNTER_NOTE = """\
All start at 0 with a program and count cycles while it runs; they wrap after 2^32.
"""


def _paragraphs(text: str) -> str:
    """Markdown with its running text filled to WIDTH."""
    blocks = []
    for block in text.strip().split("\n\n"):
        if block.startswith("#"):
            blocks.append(block)
        elif re.match(r"\d\. ", block):
            items = re.split(r"\n(?=\d\. )", block)
            blocks.append("\n".join(textwrap.fill(i, WIDTH, subsequent_indent="   ") for i in items))
        else:
            blocks.append(textwrap.fill(block, WIDTH, break_long_words=False, break_on_hyphens=False))
    return "\n\n".join(blocks)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _docstring(thing: type) -> str:
    return inspect.cleandoc(thing.__doc__ or "").replace("``", "`")


def member_docs(kind: type[enum.Enum]) -> dict[str, str]:
    """Member name -> its ``#:`` comment; a comment of "… x" continues the one before it."""
    out: dict[str, str] = {}
    previous = ""
    for name, doc in re.findall(r"^    (\w+) = [^#\n]+(?:#: (.*))?$", inspect.getsource(kind), re.M):
        if doc.startswith("… "):
            doc = re.sub(r" to .*", "", previous) + doc[1:]
        out[name] = previous = doc
    return out


def _number(value: int) -> str:
    """A number, or 2^n - 1 for large ones."""
    large = value >= 1 << 16 and value & (value + 1) == 0
    return f"2^{value.bit_length()} − 1" if large else str(value)


def _bits(field: Field) -> str:
    return str(field.offset) if field.width == 1 else f"{field.offset + field.width - 1}:{field.offset}"


def _field_row(kind: type[Instruction], field: Field) -> list[str]:
    default = {f.name: f.default for f in dataclasses.fields(kind)}[field.name]
    shown = "" if default is dataclasses.MISSING else str(int(default))
    meaning = field.doc
    if field.values:
        meaning += ": " + ", ".join(f"{value} {name}" for value, name in field.values)
    limits = f"{field.minimum} … {_number(field.maximum)}"
    return [f"`{field.name}`", _bits(field), field.unit, limits, shown, meaning]


def _instruction(kind: type[Instruction]) -> str:
    notes = NOTES[kind]
    parts = [f"## {kind.mnemonic()}", _paragraphs(_docstring(kind))]
    facts = [
        f"- Opcode {kind.opcode}. Executed by: {notes.unit}.",
        f"- Waits for: {notes.waits}.",
        f"- {notes.complete}",
    ]
    if notes.cycles:
        facts.append(f"- Cycles: {notes.cycles}.")
    if notes.refused:
        facts.append("- Stops the machine if")
        facts += [f"  - {condition}: `{code.name}`;" for code, condition in notes.refused]
        facts[-1] = facts[-1][:-1] + "."
    wrapped = []
    for fact in facts:
        indent = " " * (len(fact) - len(fact.lstrip()) + 2)
        wrapped.append(textwrap.fill(fact, WIDTH, subsequent_indent=indent, break_on_hyphens=False))
    parts.append("\n".join(wrapped))
    if kind.fields():
        rows = [_field_row(kind, field) for field in kind.fields()]
        parts.append(_table(["Field", "Bits", "Unit", "Range", "Default", "Meaning"], rows))
    return "\n\n".join(parts)


def isa_page() -> str:
    """The text of docs/isa.md."""
    summary = [
        [
            f"[{kind.mnemonic()}](#{kind.mnemonic().lower()})",
            str(kind.opcode),
            "yes" if kind.retires else "no",
            re.split(r"(?<=[.:])\s", " ".join(_docstring(kind).split()))[0].rstrip(".:") + ".",
        ]
        for kind in FORMATS
    ]
    introduction, *sections = _ISA_INTRODUCTION.split("## Encoding")
    parts = [
        GENERATED,
        "# Instruction set",
        _paragraphs(introduction),
        _table(["Instruction", "Opcode", "Retires", "What it does"], summary),
        _paragraphs("## Encoding" + sections[0]),
        *(_instruction(kind) for kind in FORMATS),
        "## Units of fields",
        _paragraphs(
            "A *word* is C bytes of activation memory, an *operand word* C × K bytes, a *post word* 8 C "
            f"bytes, a *norm word* 4 C bytes; *{BLOCK_BYTES} bytes* stands for a number of blocks of "
            f"{BLOCK_BYTES} bytes of the image. Multipliers and shifts (*mantissa*, *bits*) are as in "
            "[numerics.md](numerics.md): a factor is mult × 2^-shift."
        ),
    ]
    return "\n\n".join(parts) + "\n"


def registers_page() -> str:
    """The text of docs/registers.md."""

    def rows(names: Iterable[registers.Register]) -> list[list[str]]:
        return [[f"`0x{r.offset:03X}`", r.name, str(r.access), r.doc] for r in names]

    head = [r for r in registers.REGISTERS if r.offset < registers.COUNTER_BASE]
    counters = [r for r in registers.REGISTERS if r.offset >= registers.COUNTER_BASE]
    status = {
        "BUSY": "a program runs, or a stop or soft reset is under way",
        "DONE": "the last program ended well; cleared by a start or a soft reset",
        "ERROR": "the last program was stopped; cleared by a soft reset",
        "DRAINING": member_docs(registers.Status)["DRAINING"],
    }
    status_rows = [
        [str(bit.value.bit_length() - 1), bit.name or "", status[bit.name or ""]] for bit in registers.Status
    ]
    codes = member_docs(registers.ErrorCode)
    parts = [
        GENERATED,
        "# Registers",
        _paragraphs(_REGISTERS_INTRODUCTION),
        _table(["Offset", "Name", "Access", "Meaning"], rows(head)),
        _paragraphs(_SEQUENCE),
        "## STATUS",
        _table(["Bit", "Name", "Meaning"], status_rows),
        "## ERROR",
        _table(
            ["Code", "Name", "Meaning"],
            [[str(c.value), c.name, codes[c.name] or "no error"] for c in registers.ErrorCode],
        ),
        _paragraphs(_ERROR_NOTE),
        "## Performance counters",
        _paragraphs(_COUNTER_NOTE),
        _table(["Offset", "Name", "Access", "Meaning"], rows(counters)),
    ]
    return "\n\n".join(parts) + "\n"


PAGES = {
    "isa.md": isa_page, "registers.md": registers_page, "energy.md": energy_page, "operators.md": operators_page,
}  # fmt: skip


@click.command(name="gendocs")
@click.option("--write/--check", default=None, help="Write the pages, or fail if they are not current.")
def command(write: bool | None) -> None:
    """Write the generated pages of docs/, or check that they are what would be written."""
    if write is None:
        raise click.UsageError("give --write or --check")
    stale = []
    for name, page in PAGES.items():
        path, text = DOCS / name, page()
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if write:
            path.write_text(text, encoding="utf-8")
    if write:
        click.echo(f"written: {', '.join(stale)}" if stale else "all pages were current")
    elif stale:
        click.echo(f"not current: {', '.join(stale)}; run `make docs`", err=True)
        sys.exit(1)


if __name__ == "__main__":
    command()
