"""Some rows of a linear layer, to a LINEAR for each chunk of its columns, or of an attention, to one ATTENTION."""

from dataclasses import dataclass

from moevit.compiler.emit.draft import Draft
from moevit.compiler.quantise import QuantisedAttention, QuantisedLinear
from moevit.errors import AllocationError
from moevit.isa import Attention, Linear, OutputType
from moevit.numerics.activation import Activation
from moevit.program import DTYPES, Tensor


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Which rows a layer computes, and from where to where.

    Parameters
    ----------
    name : of the layer
    x, input_row : the tensor that it loads, and its first row there
    out, output_row : the tensor that it writes, None for one that only makes K and V; and its first row there
    rows : how many
    residual : what is added, from the same row as ``out``'s
    extra : K and V
    tiles : first and end of the column tiles that are computed; None for all
    macs, source : for the record
    """

    name: str
    x: Tensor
    input_row: int
    out: Tensor | None
    output_row: int
    rows: int
    residual: Tensor | None = None
    extra: tuple[Tensor, ...] = ()
    tiles: tuple[int, int] | None = None
    macs: int = 0
    source: tuple[str, ...] = ()


@dataclass(frozen=True)
class Work:
    """What a layer was emitted as: its last instruction that retires, and its streams."""

    last: int
    streams: list[int]


def emit_linear(
    draft: Draft, q: QuantisedLinear, r: Rows, *, after: int = 0, release: bool = True, streams: list[int] | None = None
) -> Work:
    """Add a layer's rows.

    Parameters
    ----------
    draft, q : the program, the layer's matrix
    r : which rows
    after : a retired count to wait for besides the inputs'
    release : whether the weights go with the last row; those of a layer of several LINEARs have to
    streams : if not empty, have brought the weights already
    """
    columns, residual = draft.config.columns, r.residual
    wait = max(after, draft.wait(r.x.name, residual.name if residual else None))
    key_tile, value_tile = q.key_channels // columns, q.value_channels // columns
    start, stop = r.tiles or (0, draft.tiles(q))
    fields = draft.load_fields(q, r.name) | {
        "n_rows": r.rows, "src": draft.row_word(r.x, r.input_row), "src_stride": r.x.stride,
        "activation": int(q.activation), "mult": q.second[0], "shift": q.second[1],
        "zero_point": q.second[2] if q.activation != Activation.NONE else 0, "residual": int(residual is not None),
        "release": int(release), "dst": 0, "dst_stride": 0,
    }  # fmt: skip
    work, brought = [], list(streams or ())
    for first, end in draft.column_chunks(r.name, q, start, stop):
        this = fields | {
            "tiles": end - first,
            "key_tile": min(max(key_tile - first, 0), end - first),
            "value_tile": min(max(value_tile - first, 0), end - first),
        }
        if r.out is not None:
            at = (min(first, key_tile) - min(start, key_tile)) * (DTYPES[r.out.dtype][0] // 8)
            this |= {"dst": draft.row_word(r.out, r.output_row) + at, "dst_stride": r.out.stride,
                     "out_type": int(OutputType[r.out.dtype.upper()])}  # fmt: skip
            if residual is not None:
                assert residual.stride == r.out.stride
                this["res"] = draft.row_word(residual, r.output_row) + at
        if r.extra:
            key, value = r.extra
            this |= {
                "key_base": key.addr + max(first - key_tile, 0) * draft.config.key_groups, "key_stride": key.stride,
                "value_base": value.addr + max(first - value_tile, 0) * value.stride, "value_stride": value.stride,
            }  # fmt: skip
        index = draft.issue(Linear(wait=wait, **this))
        work.append(index)
        if not streams:
            brought.append(draft.stream(q, first, end, index))
    outputs = (*((r.out,) if r.out is not None else ()), *r.extra)
    for tensor in outputs:
        draft.done(tensor, r.output_row, r.rows, work[-1])
    inputs = (r.x.name,) if residual is None else (r.x.name, residual.name)
    draft.record("linear", r.name, inputs, tuple(t.name for t in outputs), work, brought, rows=r.rows,
                 input_row=r.input_row, output_row=r.output_row, macs=r.macs, source=r.source)  # fmt: skip
    return Work(work[-1], brought)


def emit_attention(draft: Draft, q: QuantisedAttention, out: Tensor, first: int = 0, rows: int | None = None) -> int:
    """Add ``rows`` queries of an attention from ``first`` on, or all. Returns the instruction."""
    s = q.stage
    query, key, value = (draft.places[t].tensor for t in (s.x, s.key, s.value))
    rows = s.rows if rows is None else rows
    if s.keys > draft.config.tile_depth:
        raise AllocationError(
            f"layer '{s.name}' has {s.keys} keys; the A tile holds {draft.config.tile_depth}",
            mend="use a configuration with a larger tile_depth",
        )
    index = draft.issue(
        Attention(
            wait=draft.wait(s.x, s.key, s.value), n_rows=rows, src=draft.row_word(query, s.row + first),
            src_stride=query.stride, n_keys=s.keys, heads=s.heads, head_dim=s.head_dim, key_base=key.addr,
            key_stride=key.stride, value_base=value.addr, value_stride=value.stride, score_mult=q.score[0],
            score_shift=q.score[1], out_mult=q.out[0], out_shift=q.out[1], dst=draft.row_word(out, first),
            dst_stride=out.stride,
        )
    )  # fmt: skip
    draft.done(out, first, rows, index)
    name = s.name if rows == s.rows else f"{s.name}#{first}"
    draft.record("attention", name, (query.name, key.name, value.name), (out.name,), [index], [], rows=rows,
                 input_row=s.row + first, output_row=first, macs=share(s.macs, first, first + rows, s.rows),
                 source=s.source)  # fmt: skip
    return index


def share(total: int, first: int, end: int, rows: int) -> int:
    """What rows ``first`` … ``end - 1`` of ``rows`` have of a whole number, so that all shares add up to it."""
    return total * end // rows - total * first // rows
