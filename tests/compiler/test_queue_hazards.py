"""The hazard checker's rules of experts' queues: each is broken once in a program that is right."""

import dataclasses

import pytest
from mixture_program import MixtureProgram, Shape

from moevit.compiler.hazards import check_instructions
from moevit.config import BROUGHT_QUEUE_DEPTH, CONFIGS, STREAM_QUEUE_DEPTH
from moevit.errors import HazardError
from moevit.isa import DmaOut, Instruction, Linear, NormMode, OutputType, Stream
from moevit.numerics.activation import Activation

CONFIG = CONFIGS["tiny"]
Instructions = list[Instruction]


def check(instructions: Instructions, mixture: MixtureProgram, config=CONFIG) -> None:
    (task,) = mixture.program.tasks
    begin = dataclasses.replace(instructions[0], count=len(instructions), digest=config.digest)  # type: ignore[call-arg]
    check_instructions(
        config, [begin, *instructions[1:]], len(mixture.program.image), task.input_bytes, task.output_bytes
    )


def made(**shape) -> tuple[Instructions, MixtureProgram]:
    mixture = MixtureProgram(CONFIG, Shape(**shape))
    return mixture.program.instructions(mixture.program.tasks[0]), mixture


def numbers(instructions: Instructions, kind: type, **fields: int) -> list[int]:
    return [
        n for n, i in enumerate(instructions)
        if isinstance(i, kind) and all(bool(getattr(i, name)) == value for name, value in fields.items())
    ]  # fmt: skip


def change(instructions: Instructions, number: int, **fields) -> None:
    instructions[number] = dataclasses.replace(instructions[number], **fields)


@pytest.mark.parametrize("shape", [{}, {"chunks": 2, "columns": 2}, {"speculative": True, "experts": 20}])
def test_right_programs_pass(shape) -> None:
    check(*made(**shape))


def test_every_wait_is_needed() -> None:
    """Of LINEARs and of predicated STREAMs."""
    instructions, mixture = made(chunks=2)
    tested = 0
    for number, i in enumerate(instructions):
        wait = getattr(i, "wait", 0)
        if wait > 0:
            broken = list(instructions)
            change(broken, number, wait=wait - 1)
            with pytest.raises(HazardError, match=f"instruction {number} "):
                check(broken, mixture)
            tested += 1
    assert tested > 40


GATE, GATHER, SCATTER, PREDICATED = range(4)
FAULTS = {
    "no experts": (GATE, {"experts": 0}, "0 experts"),
    "more experts than columns": (GATE, {"experts": 9}, "9 experts"),
    "more experts per token than experts": (GATE, {"top_k": 6}, "6 of 5"),
    "no expert per token": (GATE, {"top_k": 0}, "0 of 5"),
    "a gate's residual": (GATE, {"residual": 1}, "no residual"),
    "a gate's activation": (GATE, {"activation": int(Activation.GELU)}, "no activation"),
    "a gate's K": (GATE, {"key_tile": 0}, "no K"),
    "a gate over a queue": (GATE, {"gather": 1}, "no norm"),
    "a large token": (GATE, {"token": 8191}, "too many for a queue entry"),
    "nothing cleared": (GATE, {"clear": 0}, "nothing has cleared"),
    "kept over its own rows": (GATE, {"keep_dst": "src", "keep_stride": 0}, "loads itself"),
    "kept outside": (GATE, {"keep_dst": CONFIG.activation_words - 1}, "leave 0"),
    "kept without a norm": (GATE, {"norm": int(NormMode.NONE)}, "already in memory|no STREAM|norm"),
    "an expert's norm": (GATHER, {"norm": int(NormMode.AFFINE)}, "no norm"),
    "an expert's kept rows": (GATHER, {"keep": 1}, "no norm"),
    "an expert's K": (GATHER, {"key_tile": 0}, "no K"),
    "an expert's held weights": (GATHER, {"release": 0}, "releases"),
    "too few rows": (GATHER, {"n_rows": 10}, "allows 10 rows"),
    "rows outside": (GATHER, {"src": CONFIG.activation_words - 20}, "leave 0"),
    "tokens that were not kept": (GATHER, {"src": 8000}, "nothing has written"),
    "dense rows outside": (GATHER, {"dst": CONFIG.activation_words - 5}, "leave 0"),
    "a scatter's activation": (SCATTER, {"activation": int(Activation.RELU)}, "scatter adds"),
    "a scatter of bytes": (SCATTER, {"out_type": int(OutputType.INT8)}, "scatter adds"),
    "a scatter without residual": (SCATTER, {"residual": 0}, "scatter adds"),
    "a scatter elsewhere": (SCATTER, {"res": 0}, "scatter adds"),
    "a scatter on nothing": (SCATTER, {"res": 8000, "dst": 8000}, "nothing has written"),
    "another queue's dense rows": (SCATTER, {"queue": 3}, "holds rows of a queue|does not bring"),
    "another queue's stream": (PREDICATED, {"queue": 3}, "does not bring"),
    "a stream for all": (PREDICATED, {"predicated": 0}, "does not bring|no predicated"),
    "fewer words": (PREDICATED, {"post_words": 1}, "no STREAM before it|does not bring|never released"),
    "norm words": (PREDICATED, {"norm_words": 1, "norm_offset": 0}, "never released|does not bring"),
    "a late decision": (PREDICATED, {"wait": 5}, "stand before its LINEAR"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_found(name: str) -> None:
    instructions, mixture = made()
    kind, fields, message = FAULTS[name]
    where = [
        numbers(instructions, Linear, route=True), numbers(instructions, Linear, gather=True),
        numbers(instructions, Linear, scatter=True), numbers(instructions, Stream, predicated=True),
    ][kind][0]  # fmt: skip
    fields = {k: getattr(instructions[where], v) if isinstance(v, str) else v for k, v in fields.items()}
    change(instructions, where, **fields)
    with pytest.raises(HazardError, match=message):
        check(instructions, mixture)


def test_a_queue_that_no_gate_has_filled() -> None:
    instructions, mixture = made()
    (gate,) = numbers(instructions, Linear, route=True)
    change(instructions, gate, route=0)
    with pytest.raises(HazardError, match="no gate has filled"):
        check(instructions, mixture)


def test_tokens_come_once() -> None:
    """A second gate that appends must bring tokens behind those that are there."""
    instructions, mixture = made(chunks=2)
    _, second = numbers(instructions, Linear, route=True)
    change(instructions, second, clear=0, token=4)
    with pytest.raises(HazardError, match="token 4 is appended behind token 4"):
        check(instructions, mixture)
    change(instructions, second, token=5)
    with pytest.raises(HazardError, match="allows 6 rows; its queue may hold 11"):
        check(instructions, mixture)


def test_entries_fit_the_queues() -> None:
    instructions, mixture = made()
    check(instructions, mixture, dataclasses.replace(CONFIG, queue_entries=32))
    with pytest.raises(HazardError, match="may get 22 entries; they hold 16"):
        check(instructions, mixture, dataclasses.replace(CONFIG, queue_entries=16))


def test_dense_rows_mean_nothing_to_others() -> None:
    """Nor to the same queue once a gate has filled it anew."""
    instructions, mixture = made(chunks=2)
    gather = instructions[numbers(instructions, Linear, gather=True)[0]]
    assert isinstance(gather, Linear)
    out = numbers(instructions, DmaOut)[0]
    copy = list(instructions)
    change(copy, out, src=gather.dst, words=1)
    with pytest.raises(HazardError, match="holds rows of a queue"):
        check(copy, mixture)
    later = [n for n in numbers(instructions, Linear, scatter=True) if instructions[n].queue == 0][1]  # type: ignore[attr-defined]
    change(instructions, later, src=gather.dst, n_rows=6)
    with pytest.raises(HazardError, match="holds rows of a queue"):
        check(instructions, mixture)


def test_kept_rows_wait_for_post() -> None:
    """The loader would write them while POST still adds to the rows that are there."""
    instructions, mixture = made(chunks=2)
    _, second = numbers(instructions, Linear, route=True)
    scatter = instructions[numbers(instructions, Linear, scatter=True)[0]]
    gate = instructions[second]
    assert isinstance(scatter, Linear)
    assert isinstance(gate, Linear)
    # Over rows of the first chunk that its experts have added to, which nobody reads any more but POST.
    change(instructions, second, keep_dst=scatter.dst, keep_stride=2)
    with pytest.raises(HazardError, match="keeps activation word"):
        check(instructions, mixture)


def test_gate_of_a_second_chunk_may_overtake_experts() -> None:
    """It waits for what it loads alone."""
    instructions, _ = made(chunks=2)
    first, second = (instructions[n] for n in numbers(instructions, Linear, route=True))
    assert first.wait == second.wait  # type: ignore[attr-defined]


def streams_first(instructions: Instructions, ahead: int) -> Instructions:
    """The same work with each STREAM so many ahead of its LINEAR."""
    streams = [i for i in instructions if isinstance(i, Stream)]
    out, following = [instructions[0], *streams[:ahead]], ahead
    for i in instructions[1:]:
        if isinstance(i, Stream):
            continue
        out.append(i)
        if isinstance(i, Linear) and following < len(streams):
            out.append(streams[following])
            following += 1
    return out


def test_a_decision_must_not_wait_for_what_is_behind() -> None:
    """Fetch waits for a place in the streamer's queue, the streamer for the gate, and that is not fetched."""
    instructions, mixture = made(experts=24, hidden=8, width=8)
    most = 1 + STREAM_QUEUE_DEPTH  # the gate is the second LINEAR, and the first predicated STREAM the third
    check(streams_first(instructions, most), mixture)
    with pytest.raises(HazardError, match="may block for ever: the predicated STREAM"):
        check(streams_first(instructions, most + 1), mixture)
    instructions, mixture = made(experts=24, hidden=8, width=8, speculative=True)
    check(streams_first(instructions, most + 1), mixture)


def test_decisions_wait_for_a_place() -> None:
    """With the loader BROUGHT_QUEUE_DEPTH behind, a speculative STREAM waits as well."""
    instructions, mixture = made(experts=40, hidden=8, width=8, speculative=True)
    most = BROUGHT_QUEUE_DEPTH + STREAM_QUEUE_DEPTH
    check(streams_first(instructions, most), mixture)
    with pytest.raises(HazardError, match="may block for ever: the predicated STREAM"):
        check(streams_first(instructions, most + 1), mixture)


def test_nobody_else_takes_an_experts_words() -> None:
    """An ordinary LINEAR, put before a queue's, holds the words that are then that one's."""
    instructions, mixture = made()
    number = numbers(instructions, Linear, gather=True)[0]
    before = sum(i.retires for i in instructions[:number])
    for n, i in enumerate(instructions):
        if getattr(i, "wait", 0) > before:
            change(instructions, n, wait=i.wait + 1)  # type: ignore[attr-defined]
    copy = dataclasses.replace(instructions[number], gather=0, queue=0, release=0, dst=8000)  # type: ignore[call-arg]
    instructions.insert(number, copy)
    stream = numbers(instructions, Stream, predicated=True)[0]
    with pytest.raises(HazardError, match=f"takes post words of a predicated STREAM, instruction {stream}"):
        check(instructions, mixture)
