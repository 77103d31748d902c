"""The instruction set: encodings that stay, ranges that hold, text and bytes that come back."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moevit.cli import gendocs
from moevit.errors import EncodingError
from moevit.isa import (
    FORMATS,
    INSTRUCTION_BYTES,
    INSTRUCTION_WIDTH,
    Attention,
    Begin,
    DmaIn,
    DmaOut,
    End,
    Linear,
    NormMode,
    OutputType,
    Stream,
    decode,
    decode_program,
    encode,
    encode_program,
)
from moevit.isa.disassemble import assemble, disassemble
from moevit.numerics.route import RouteOrder


@st.composite
def instructions(draw):
    """Any valid instruction, with values often at the ends of their ranges."""
    kind = draw(st.sampled_from(FORMATS))
    values = {}
    for field in kind.fields():
        ends = st.sampled_from([field.minimum, field.maximum])
        values[field.name] = draw(ends | st.integers(field.minimum, field.maximum))
    return kind(**values)


#: One instruction of each kind, and its bytes without the zeros at the end. A change here breaks every container
#: that exists: raise ISA_VERSION with it.
GOLDEN = [
    (
        Begin(digest=0x0123456789ABCDEF, ring_words=4096, count=1000),
        "014d4f455602efcdab89674523010010d007",
    ),
    (End(), "02"),
    (
        Stream(
            norm_offset=1, norm_words=24, post_offset=3, post_words=96, weight_offset=4, weight_words=4608,
        ),
        "030100000018300000000006040000000012",
    ),
    (
        Stream(
            post_offset=3, post_words=96, weight_offset=4, weight_words=4608, predicated=1, queue=37, speculative=1,
            wait=700,
        ),
        "030000000000300000000006040000000012967905",
    ),
    (
        DmaIn(
            wait=3, source=1, offset=0x1000, count0=16, count1=16, src_stride0=0x700, src_stride1=0x10,
            segments=3, segment_bytes=48, dst_stride0=0x300, dst_stride1=48, dst_segment=16, dst=0x2000,
        ),
        "04030001200000200002000e0000020000000600600000060006002000000040",
    ),
    (DmaOut(wait=9, src=100, words=16, offset=64), "050900640040000001"),
    (
        Linear(
            wait=5, n_rows=129, src=1000, src_stride=48, length=192, norm=NormMode.LAYERNORM,
            inverse_mult=43691, inverse_shift=23, epsilon=12345, tiles=24, key_tile=8, value_tile=16,
            key_base=4096, key_stride=48, value_base=5000, value_stride=33, dst=2000, dst_stride=8,
            out_type=OutputType.INT8,
        ),
        "0605000301fa00300083aeaa5e3930000000000703000000000000007d0002084000000103102742",
    ),
    (
        Linear(
            wait=5, n_rows=129, src=1000, src_stride=48, length=192, norm=NormMode.LAYERNORM, tiles=2, key_tile=2,
            value_tile=2, dst=0, dst_stride=0, token=17, keep=1, keep_dst=3000, keep_stride=24,
            route=RouteOrder.TOPK_SOFTMAX, experts=16, top_k=2, threshold=0x1234, clear=1,
        ),
        "0605000301fa00300083020000000000000000470000000000000000000000020800000000000000400488bb000642442311",
    ),
    (
        Linear(
            wait=7, n_rows=129, src=3000, src_stride=24, length=192, tiles=24, key_tile=24, value_tile=24,
            residual=1, res=1000, out_type=OutputType.INT16, dst=1000, dst_stride=48, gather=1, scatter=1, queue=37,
        ),
        "0607000301ee02180003020000000000000000070300000080e803883e000c186000000000000000000000000000000000e012",
    ),
    (
        Attention(
            wait=6, n_rows=129, src=2000, src_stride=8, n_keys=129, heads=3, head_dim=64, key_base=4096,
            key_stride=48, value_base=5000, value_stride=33, score_mult=40000, score_shift=20,
            out_mult=50000, out_shift=30, dst=3000, dst_stride=8,
        ),
        "0706008100fa000402c1000800081880381102803829a8610f770104",
    ),
]  # fmt: skip


@given(instructions())
def test_bytes_come_back(instruction):
    data = encode(instruction)
    assert len(data) == INSTRUCTION_BYTES
    assert decode(data) == instruction


@given(instructions())
def test_text_comes_back(instruction):
    assert assemble(disassemble(instruction)) == instruction


@given(st.lists(instructions(), max_size=5))
@settings(max_examples=20)
def test_programs_come_back(program):
    assert list(decode_program(encode_program(program))) == program


@given(instructions(), st.data())
def test_every_field_keeps_to_its_range(instruction, data):
    if not instruction.fields():
        return
    field = data.draw(st.sampled_from(instruction.fields()))
    value = data.draw(st.integers(max_value=field.minimum - 1) | st.integers(min_value=field.maximum + 1))
    with pytest.raises(EncodingError, match=rf"{instruction.mnemonic()}\.{field.name} = {value} "):
        encode(dataclasses.replace(instruction, **{field.name: value}))


@given(st.binary(min_size=INSTRUCTION_BYTES, max_size=INSTRUCTION_BYTES))
def test_what_decodes_is_what_encodes(data):
    try:
        instruction = decode(data)
    except EncodingError:
        return
    assert encode(instruction) == data


@given(instructions(), st.integers(0, INSTRUCTION_WIDTH - 1))
def test_a_flipped_bit_is_another_instruction_or_an_error(instruction, bit):
    word = int.from_bytes(encode(instruction), "little") ^ 1 << bit
    try:
        changed = decode(word.to_bytes(INSTRUCTION_BYTES, "little"))
    except EncodingError:
        return
    assert changed != instruction


@pytest.mark.parametrize("kind", FORMATS, ids=lambda k: k.mnemonic())
def test_layout(kind):
    """Fields are dense from above the opcode, and fit."""
    position = 8
    for field in kind.fields():
        assert field.offset == position
        position += field.width
        assert 0 <= field.minimum <= field.maximum < 1 << field.width
        if field.values:
            assert [value for value, _ in field.values] == list(range(len(field.values)))
    assert position <= INSTRUCTION_WIDTH


def test_opcodes_differ_and_zero_is_none():
    assert sorted(kind.opcode for kind in FORMATS) == list(range(1, len(FORMATS) + 1))


@pytest.mark.parametrize(("instruction", "data"), GOLDEN, ids=[i.mnemonic() for i, _ in GOLDEN])
def test_golden_bytes(instruction, data):
    assert encode(instruction).rstrip(b"\0").hex() == data


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "64 bytes, not 0"),
        (bytes(64), "unknown opcode 0"),
        (bytes([255] * 64), "unknown opcode 255"),
        (b"\2" + bytes(62) + b"\x80", "END: bits outside its fields"),
        (b"\5" + bytes(63), "DMA_OUT.words = 0 is outside 1 … 65535"),
        (
            (6 | 3 << 79 | 1 << 25 | 1 << 66 | 1 << 157).to_bytes(64, "little"),
            "LINEAR.norm = 3 is outside 0 … 2",
        ),
    ],
)
def test_what_is_no_instruction(data, said):
    with pytest.raises(EncodingError, match=said):
        decode(data)


def test_a_program_says_which_instruction_is_wrong():
    with pytest.raises(EncodingError, match="instruction 1: unknown opcode 0"):
        decode_program(encode(End()) + bytes(64))
    with pytest.raises(EncodingError, match="multiple of 64 bytes, not 65"):
        decode_program(bytes(65))


def test_disassembly_is_short():
    assert disassemble(End()) == "END"
    assert disassemble(DmaOut(src=1, words=0x20, offset=3)) == "DMA_OUT src=1 words=32 offset=3"
    line = "LINEAR n_rows=1 src=2 src_stride=3 length=4 norm=layernorm tiles=5 dst=6 dst_stride=7"
    line += " key_tile=5 value_tile=5"
    assert disassemble(assemble(line)) == line
    assert assemble("DMA_IN offset=0x10 segment_bytes=0b11 dst=0 source=image").offset == 16


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("NOP", "unknown instruction 'NOP'"),
        ("END now", "END: cannot read 'now'"),
        ("DMA_OUT source=3", "DMA_OUT: cannot read 'source=3'"),
        ("DMA_OUT src=three", "DMA_OUT: cannot read 'src=three'"),
        ("DMA_OUT src=3", "DMA_OUT: .*missing"),
    ],
)
def test_what_is_no_assembly(line, said):
    with pytest.raises(EncodingError, match=said):
        assemble(line)


def test_the_page_tells_of_every_field():
    page = gendocs.isa_page()
    for kind in FORMATS:
        section = page.split(f"\n## {kind.mnemonic()}\n")[1].split("\n## ")[0]
        assert f"Opcode {kind.opcode}." in section
        for field in kind.fields():
            assert f"| `{field.name}` | " in section
            assert field.doc in section


def test_the_pages_are_current():
    for name, page in gendocs.PAGES.items():
        assert (gendocs.DOCS / name).read_text(encoding="utf-8") == page(), "run `make docs`"
