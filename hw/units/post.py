"""POST: what happens to accumulators, from requantisation to where the result is written."""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out, connect, flipped

from moevit.config import AcceleratorConfig
from moevit.hw.interfaces import (
    ACTIVATION_READ_LATENCY,
    PARAMETER_READ_LATENCY,
    RING_COUNT_WIDTH,
    SLOT_WIDTH,
    ActivationReadSignature,
    ActivationWriteSignature,
    InstructionStream,
    MemoryReadSignature,
    OperandWriteSignature,
    Phase,
    QueueAppendSignature,
    QueueEntry,
    RowEntrySignature,
    RowScaleSignature,
    RowSignature,
    StagedSignature,
    TileMeta,
    events_layout,
    marks_layout,
)
from moevit.hw.units import activation, kv_writer, post_addresses, post_output, requantise, route, softmax
from moevit.hw.units.arithmetic import delay
from moevit.hw.units.events import raise_first
from moevit.hw.units.post_banks import PostBanks, Settings
from moevit.isa.formats import COUNT, OutputType
from moevit.numerics.activation import Activation
from moevit.numerics.fixed import MULT_WIDTH, SHIFT_WIDTH

# Stages: cycles after a row came in at which something of it is there.
_ENTRY = 1  # its queue entry
_WORD = 3  # address of its post word
_PARAMETERS = _WORD + PARAMETER_READ_LATENCY  # the word, or the common multiplier of attention
_FIRST = _PARAMETERS + 1  # into the first scaling stage
_MID = _FIRST + requantise.LATENCY
_SECOND = _MID + activation.LATENCY
_SCALED = _SECOND + requantise.LATENCY
_RESIDUAL = _SCALED - post_output.RESIDUAL_LEAD  # the residual's data
_READ = _RESIDUAL - ACTIVATION_READ_LATENCY  # its request
_ADDRESS = _READ - post_addresses.LATENCY
_RESULT = _SCALED + post_output.LATENCY

LATENCY = _RESULT + 1
"""Cycles from ``i_rows`` to ``act_write``."""
KV_LATENCY = _RESULT + kv_writer.LATENCY
"""Cycles from the last row of a K or V tile to the first of its ``kv`` writes; the others follow one a cycle.
Up to C/K cycles more while those of the tile ahead are not through."""
ROUTE_LATENCY = _MID
"""Cycles from ``i_rows`` to Route."""
RETIRE_LATENCY = 1
"""Cycles from the last write of an instruction to ``retire``."""


def staged_latency(config: AcceleratorConfig) -> int:
    """Cycles from ``i_rows`` to ``o_staged``."""
    return _MID + softmax.latency(config)


class Post(wiring.Component):
    """The output pipeline: one row of C lanes a cycle through fixed stages; nothing stalls it.

    Every row takes the same path. First scaling stage (LINEAR: each lane's parameters from the post word at
    post tail + column; SCORES: the instruction's; CONTEXT: the row's), activation, second scaling stage
    (which passes on rows without an activation), zero point, residual, saturation, write. SCORES leave after
    the first stage for the softmax; K and V rows have neither activation nor residual and end in the
    KvWriter. The instructions' fields are chosen by each row's bank at the stage that needs them, so rows of
    two instructions can be in flight.

    Of a mixture of experts, the gate's rows leave after the first stage too, for Route, which retires their
    instruction. A row of ``scatter`` takes its score, as the second stage's multiplier, and its place from its
    queue entry. The row that stands for an instruction of an empty queue (SKIP) only moves the post
    pointer and retires.

    Parameters
    ----------
    config : the accelerator's configuration

    Members
    -------
    i_instr : In(InstructionStream), LINEAR and ATTENTION in order, each before its first row; to bank 0, 1, …
    i_rows : In(RowSignature)
    parameters : Out(MemoryReadSignature(post_words, 64 * C)), the ring of post words
    post_tail : Out(RING_COUNT_WIDTH), free-running count of freed post words
    act_read, act_write, kv : Out; always granted, their ``ready`` is not looked at
    o_staged : Out(StagedSignature)
    i_scale : In(RowScaleSignature); at most 3 cycles after the first row it is for
    i_entry : In(RowEntrySignature), written in a cycle before that of the row it is for; a row takes its entry when
        it comes in
    o_append : Out(QueueAppendSignature), of gates
    route_freed : Out(1), pulse: a row tile of a gate has been worked off; at most two may be on their way
    retire : Out(1), one cycle per instruction, in order
    busy : Out(1), an instruction has not retired
    events : Out(events_layout("post")), a cycle late
    marks : Out(marks_layout("post"))
    fault_activation : Out(1), one-cycle pulse: a word beyond the activation memory; the access was not made
    fault_operand : Out(1), one-cycle pulse: a K/V word beyond the operand memory (not written), or K/V tiles
        faster than the KvWriter's throughput

    Numerics: ``requantise``, ``rescale``, ``saturate`` (``numerics.fixed``), ``activate``, ``softmax``.
    Latency: ``LATENCY``, ``KV_LATENCY``, ``staged_latency(config)``; then ``RETIRE_LATENCY``. A gate's:
    ``ROUTE_LATENCY``, then Route's; retirement ``RETIRE_LATENCY`` after its last append.
    Throughput: one row a cycle; a K or V tile every C/K cycles (see KvWriter).
    """

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        super().__init__(
            {
                "i_instr": In(InstructionStream),
                "i_rows": In(RowSignature(config)),
                "parameters": Out(MemoryReadSignature(config.post_words, 64 * config.columns)),
                "post_tail": Out(RING_COUNT_WIDTH),
                "act_read": Out(ActivationReadSignature(config)),
                "act_write": Out(ActivationWriteSignature(config)),
                "kv": Out(OperandWriteSignature(config)),
                "o_staged": Out(StagedSignature(config)),
                "i_scale": In(RowScaleSignature(config)),
                "i_entry": In(RowEntrySignature(config)),
                "o_append": Out(QueueAppendSignature()),
                "route_freed": Out(1),
                "retire": Out(1),
                "busy": Out(1),
                "events": Out(events_layout("post")),
                "marks": Out(marks_layout("post")),
                "fault_activation": Out(1),
                "fault_operand": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.banks = banks = PostBanks(config)
        m.submodules.first = first = requantise.Requantise(config)
        m.submodules.activation = activate = activation.Activation(config)
        m.submodules.second = second = requantise.Rescale(config)
        m.submodules.output = output = post_output.PostOutput(config)
        m.submodules.softmax = scores = softmax.Softmax(config)
        m.submodules.route = gate = route.Route(config)
        m.submodules.addresses = addresses = post_addresses.PostAddresses(config)
        m.submodules.kv_writer = writer = kv_writer.KvWriter(config)

        rows = _Rows(m, config, self.i_rows, banks.banks)
        self._first_stage(m, rows, first)
        self._scores(m, rows, first, scores)
        self._gate(m, rows, first, gate)
        entry = self._entry(m, rows)
        self._second_stage(m, rows, first, activate, second, entry.score)
        self._output(m, rows, second, output, addresses, entry.token)
        self._write(m, rows, output, addresses, writer, banks, gate)

        connect(m, flipped(self.i_instr), banks.i_instr)
        connect(m, scores.o_staged, flipped(self.o_staged))
        connect(m, writer.kv, flipped(self.kv))
        connect(m, gate.o_append, flipped(self.o_append))
        m.d.comb += [
            self.route_freed.eq(gate.freed),
            self.retire.eq(banks.retire),
            self.post_tail.eq(banks.post_tail),
            self.busy.eq(banks.busy | writer.busy),
        ]
        self._watch(m, rows)
        return m

    def _watch(self, m, rows) -> None:
        """What is said of each cycle."""
        awaited, fresh = Signal(2), Signal(init=1)  # instructions whose last row has not come; nor any of the next
        last = rows.is_last(0)
        m.d.sync += awaited.eq(awaited + (self.i_instr.valid & self.i_instr.ready) - last)
        raise_first(m, self.events, {"busy": self.i_rows.valid, "rows": awaited.any(), "pipeline": self.busy})
        with m.If(self.i_rows.valid):
            m.d.sync += fresh.eq(last)
        m.d.comb += [
            self.marks.first.eq(self.i_rows.valid & fresh),
            self.marks.last.eq(last),
            self.marks.done.eq(self.retire),
        ]

    def _first_stage(self, m, rows, first) -> None:
        config, lanes = self.config, range(self.config.columns)
        # The post word. The pointer moves on when an instruction's last row has passed: the next one's rows
        # may follow before it retires.
        pointer = Signal(range(config.post_words))
        row = rows.info[_WORD - 1]
        m.d.sync += self.parameters.addr.eq(_wrap(pointer + row.meta.column, config.post_words))
        release, tiles = (rows.setting(_WORD - 1, name) for name in ("release", "tiles"))
        with m.If(release & rows.is_last(_WORD - 1)):
            m.d.sync += pointer.eq(_wrap(pointer + tiles, config.post_words))

        # The scale of a row of P.V, kept per unit parity and row.
        scale = data.StructLayout({"mult": MULT_WIDTH, "shift": SHIFT_WIDTH})
        m.submodules.scales = scales = Memory(
            shape=scale, depth=2 * config.rows, init=[], attrs={"ram_style": "distributed"}
        )
        write, read = scales.write_port(), scales.read_port()
        row = rows.info[_PARAMETERS - 1]
        m.d.comb += [
            write.en.eq(self.i_scale.valid),
            write.addr.eq(Cat(self.i_scale.row, self.i_scale.unit)),
            write.data.mult.eq(self.i_scale.mult),
            write.data.shift.eq(self.i_scale.shift),
            read.addr.eq(Cat(row.row, row.meta.unit)),
        ]
        phase = rows.info[_PARAMETERS].meta.phase
        is_linear, is_scores = phase == Phase.LINEAR, phase == Phase.SCORES
        mult = Mux(is_scores, rows.setting(_PARAMETERS, "score_mult"), read.data.mult)
        shift = Mux(is_scores, rows.setting(_PARAMETERS, "score_shift"), read.data.shift)
        for i in lanes:
            word = self.parameters.data.word_select(i, 64)
            m.d.comb += [
                first.acc[i].eq(delay(m, self.i_rows.acc[i], _FIRST, name=f"acc_{i}")),
                first.bias[i].eq(delay(m, Mux(is_linear, word[:32], 0), 1, name=f"bias_{i}")),
                first.mult[i].eq(delay(m, Mux(is_linear, word[32:48], mult), 1, name=f"mult_{i}")),
                first.shift[i].eq(delay(m, Mux(is_linear, word[48:54], shift), 1, name=f"shift_{i}")),
            ]

    def _scores(self, m, rows, first, scores) -> None:
        row = rows.info[_MID]
        m.d.comb += [
            scores.valid.eq(rows.valid[_MID] & (row.meta.phase == Phase.SCORES)),
            scores.unit.eq(row.meta.unit),
            scores.row.eq(row.row),
            scores.column.eq(row.meta.column),
            scores.last.eq(row.last_row & row.meta.last_column),
            scores.n_keys.eq(rows.setting(_MID, "n_keys")),
            scores.mid.eq(first.mid),
        ]

    def _gate(self, m, rows, first, gate) -> None:
        row = rows.info[_MID]
        fields = ("row_tile", "column", "last_column", "last", "bank")
        m.d.comb += [getattr(gate, name).eq(getattr(row.meta, name)) for name in fields]
        fields = ("experts", "top_k", "threshold", "token", "clear")
        m.d.comb += [getattr(gate, name).eq(rows.setting(_MID, name)) for name in fields]
        m.d.comb += [
            gate.valid.eq(rows.valid[_MID] & rows.setting(_MID, "gate")),
            gate.row.eq(row.row),
            gate.last_row.eq(row.last_row),
            gate.order.eq(rows.setting(_MID, "route")),
            gate.mid.eq(first.mid),
        ]

    def _entry(self, m, rows) -> data.View:
        """The rows' queue entries, at stage _ENTRY: early, before their tile's place is used again."""
        m.submodules.entries = entries = Memory(
            shape=QueueEntry, depth=self.config.rows << SLOT_WIDTH, init=[], attrs={"ram_style": "distributed"}
        )
        write, read = entries.write_port(), entries.read_port()
        row = rows.info[_ENTRY - 1]
        m.d.comb += [
            write.en.eq(self.i_entry.valid),
            write.addr.eq(Cat(self.i_entry.row, self.i_entry.slot)),
            write.data.eq(self.i_entry.entry),
            read.addr.eq(Cat(row.row, row.meta.slot)),
        ]
        return read.data

    def _second_stage(self, m, rows, first, activate, second, score) -> None:
        # A queue entry's score is known a stage before the setting has to be.
        at = _SECOND - 1
        score = delay(m, score, at - _ENTRY, name="score")
        mult = Mux(rows.setting(at, "scatter"), score, rows.setting(at, "mult", kv=1))
        m.d.comb += [
            activate.mid.eq(first.mid),
            activate.kind.eq(rows.setting(_MID, "activation", kv=Activation.NONE)),
            second.mid.eq(activate.y),
            second.mult.eq(delay(m, mult, 1, name="second_mult")),
            second.shift.eq(rows.setting(_SECOND, "shift", kv=0)),
        ]

    def _output(self, m, rows, second, output, addresses, token) -> None:
        row, before = rows.info[_ADDRESS], rows.info[_ADDRESS - 1]
        token = delay(m, token, _ADDRESS - 1 - _ENTRY, name="token")
        place = Cat(before.row, before.meta.row_tile)[:COUNT]
        index = Mux(rows.setting(_ADDRESS - 1, "scatter"), token, place)
        # Whether the row at _READ has a residual, found a cycle before, for the memory's arbitration waits for it.
        is_row = rows.valid[_READ - 1] & (rows.info[_READ - 1].meta.phase != Phase.SKIP)
        self._reads = delay(m, is_row & rows.setting(_READ - 1, "residual", kv=0), 1, name="reads", reset=True)
        m.d.comb += [
            addresses.meta.eq(row.meta),
            addresses.index.eq(delay(m, index, 1, name="index")),
            addresses.settings.eq(rows.settings(_ADDRESS)),
            addresses.is_value.eq(rows.is_value[_ADDRESS]),
            self.act_read.valid.eq(self._reads & ~addresses.residual_outside),
            self.act_read.pair.eq(addresses.residual[1:]),
            output.zero_point.eq(rows.setting(_RESIDUAL, "zero_point", kv=0)),
            output.use_residual.eq(rows.setting(_RESIDUAL, "residual", kv=0)),
            output.pair.eq(self.act_read.data),
            output.scaled.eq(second.scaled),
            output.out_type.eq(rows.setting(_SCALED + 1, "out_type", kv=OutputType.INT8)),
        ]

    def _write(self, m, rows, output, addresses, writer, banks, gate) -> None:
        columns = self.config.columns
        row, late = rows.info[_RESULT], _RESULT - _READ
        here = {
            n: delay(m, getattr(addresses, n), late, name=f"{n}_late")
            for n in ("write", "write_outside", "kv_address", "kv_slot")
        }
        to_kv, valid = rows.is_kv[_RESULT], rows.valid[_RESULT]
        ends = valid & ~to_kv & (row.meta.phase != Phase.SCORES) & ~rows.setting(_RESULT, "gate")
        to_memory = ends & (row.meta.phase != Phase.SKIP)
        is_wide = rows.setting(_RESULT, "out_type") == OutputType.INT16
        low, high = (Cat(output.result[i][half : half + 8] for i in range(columns)) for half in (0, 8))
        is_odd = here["write"][0]
        m.d.sync += [
            self.act_write.valid.eq(to_memory & ~here["write_outside"]),
            self.act_write.pair.eq(here["write"][1:]),
            self.act_write.data.eq(Cat(low, Mux(is_wide, high, low))),
            self.act_write.mask.eq(
                Cat((is_wide | ~is_odd).replicate(columns), (is_wide | is_odd).replicate(columns))
            ),
        ]
        m.d.comb += [
            writer.i_rows.valid.eq(valid & to_kv),
            writer.i_rows.value.eq(rows.is_value[_RESULT]),
            writer.i_rows.row.eq(row.row),
            writer.i_rows.last_row.eq(row.last_row),
            writer.i_rows.slot.eq(here["kv_slot"]),
            writer.i_rows.address.eq(here["kv_address"]),
            writer.i_rows.final.eq(row.meta.last),
            writer.i_rows.bank.eq(row.meta.bank),
            writer.i_rows.data.eq(low),
        ]
        # Retirement: with the last write to activation memory (where that of a SKIP would be), the KvWriter's, or
        # Route's last append.
        written = delay(m, ends & rows.is_last(_RESULT), 1, name="written", reset=True)
        bank = delay(m, row.meta.bank, 1, name="written_bank")
        m.d.comb += banks.finished.eq(Cat(written & ~bank, written & bank) | writer.done | gate.done)

        read_outside = self._reads & addresses.residual_outside
        m.d.sync += self.fault_activation.eq(read_outside | (to_memory & here["write_outside"]))
        m.d.comb += self.fault_operand.eq(writer.fault)


class _Rows:
    """The rows in flight: what is known of each at every stage, and its instruction's fields."""

    def __init__(self, m: Module, config: AcceleratorConfig, i_rows, banks):
        self._m, self._banks = m, banks
        self._settings: dict[tuple[int, str, int | None], Signal] = {}
        layout = data.StructLayout({"meta": TileMeta, "row": range(config.rows), "last_row": 1})
        start = Signal(layout, name="row_0")
        m.d.comb += [start.meta.eq(i_rows.meta), start.row.eq(i_rows.row), start.last_row.eq(i_rows.last_row)]
        self.valid, self.info = [i_rows.valid], [start]
        for i in range(_RESULT):
            self.valid.append(_register(m, self.valid[i], f"row_{i + 1}_valid", reset=True))
            self.info.append(_register(m, self.info[i], f"row_{i + 1}"))

        # K and V column tiles are known one stage after the first settings.
        at = 2
        column = self.info[at].meta.column
        to_value = column >= self.setting(at, "value_tile")
        to_kv = to_value | (column >= self.setting(at, "key_tile"))
        is_linear = self.info[at].meta.phase == Phase.LINEAR
        self.is_kv: list[Value] = [C(0)] * (at + 1) + [_register(m, is_linear & to_kv, f"row_{at + 1}_kv")]
        self.is_value: list[Value] = [C(0)] * (at + 1) + [
            _register(m, is_linear & to_value, f"row_{at + 1}_value")
        ]
        for i in range(at + 1, _RESULT):
            self.is_kv.append(_register(m, self.is_kv[i], f"row_{i + 1}_kv"))
            self.is_value.append(_register(m, self.is_value[i], f"row_{i + 1}_value"))

    def is_last(self, stage: int) -> Value:
        """It is the last row of its instruction."""
        info = self.info[stage]
        return self.valid[stage] & info.meta.last & info.last_row

    def setting(self, stage: int, name: str, kv: int | None = None) -> Signal:
        """A field of the row's instruction, a register at ``stage``; ``kv`` instead for K and V rows.

        Call it outside of any ``m.If``, which would hold the register.
        """
        key = stage, name, kv
        if key not in self._settings:
            value = Mux(
                self.info[stage - 1].meta.bank, getattr(self._banks[1], name), getattr(self._banks[0], name)
            )
            if kv is not None:
                value = Mux(self.is_kv[stage - 1], kv, value)
            self._settings[key] = _register(self._m, value, f"{name}_at_{stage}")
        return self._settings[key]

    def settings(self, stage: int) -> data.View:
        """All of them."""
        banks = [Value.cast(b) for b in (self._banks[0], self._banks[1])]
        return Settings(
            _register(
                self._m, Mux(self.info[stage - 1].meta.bank, banks[1], banks[0]), f"settings_at_{stage}"
            )
        )


def _register(m: Module, value, name: str, *, reset: bool = False):
    register = Signal(value.shape(), name=name, reset_less=not reset)
    m.d.sync += register.eq(value)
    return register


def _wrap(value: Value, words: int) -> Value:
    """``value`` modulo ``words``, for values below twice that."""
    return Mux(value >= words, value - words, value)
