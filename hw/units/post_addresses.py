"""Where a row of an output tile goes: activation memory, residual and K/V addresses."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from moevit.config import AcceleratorConfig
from moevit.hw.interfaces import TileMeta
from moevit.hw.units import kv_writer
from moevit.hw.units.arithmetic import MULTIPLY_LATENCY, delay, multiply
from moevit.hw.units.post_banks import Settings
from moevit.isa.formats import ADDRESS, COUNT, OutputType

LATENCY = MULTIPLY_LATENCY + 3


class PostAddresses(wiring.Component):
    """Addresses of one row of an output tile.

    Parameters
    ----------
    config : the accelerator's configuration

    Members
    -------
    meta : In(TileMeta), of the row
    index : In(COUNT), which row of residual and result it is
    settings : In(Settings), its instruction
    is_value : In(1), its column tile goes to the V region
    write, residual : Out(ADDRESS), words of activation memory
    write_outside, residual_outside : Out(1), that word does not exist
    kv_address, kv_slot : Out, as in KvRowSignature; an address outside the operand memory stays outside

    Numerics: ``dst + index * dst_stride + head * head_words + column`` (twice the column for 16 bits) and the
    K/V layouts of the microarchitecture. Latency: ``LATENCY`` cycles. Throughput: one row a cycle.
    """

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        super().__init__(
            {
                "meta": In(TileMeta),
                "index": In(COUNT),
                "settings": In(Settings),
                "is_value": In(1),
                "write": Out(ADDRESS),
                "write_outside": Out(1),
                "residual": Out(ADDRESS),
                "residual_outside": Out(1),
                "kv_address": Out(kv_writer.ADDRESS_WIDTH),
                "kv_slot": Out(range(kv_writer.slot_count(config))),
            }
        )

    def elaborate(self, platform):
        m = Module()
        self._activation(m)
        self._operand(m)
        return m

    def _activation(self, m) -> None:
        settings, column = self.settings, self.meta.column
        late = MULTIPLY_LATENCY
        line = multiply(m, self.index, settings.dst_stride, name="line")
        head = multiply(m, self.meta.head, settings.head_words, name="head")
        dst, res = delay(m, settings.dst, late, name="dst"), delay(m, settings.res, late, name="res")
        wide = Cat(C(0, 1), column)
        place = delay(m, Mux(settings.out_type == OutputType.INT16, wide, column), late, name="place")
        wide = delay(m, wide, late + 1, name="wide")

        write = delay(
            m,
            delay(m, dst + line, 1, name="write_line") + delay(m, head + place, 1, name="write_place"),
            1,
            name="write_sum",
        )
        residual = delay(m, delay(m, res + line, 1, name="residual_line") + wide, 1, name="residual_sum")
        for total, address, outside in (
            (write, self.write, self.write_outside),
            (residual, self.residual, self.residual_outside),
        ):
            m.d.sync += [address.eq(total), outside.eq(total >= self.config.activation_words)]

    def _operand(self, m) -> None:
        config, settings = self.config, self.settings
        log2_rows, log2_columns, log2_depth = (
            n.bit_length() - 1 for n in (config.rows, config.columns, config.depth)
        )
        late = MULTIPLY_LATENCY
        # token is a multiple of T, so only tiles of tokens are added
        tile = delay(m, settings.token[log2_rows:] + self.meta.row_tile, 1, name="tile")
        is_value = delay(m, self.is_value, 1, name="is_value_1")
        channel = delay(
            m,
            (self.meta.column - Mux(self.is_value, settings.value_tile, settings.key_tile)),
            1,
            name="channel",
        )
        channel = channel[: len(self.meta.column)]
        stride = delay(m, Mux(self.is_value, settings.value_stride, settings.key_stride), 1, name="stride")
        base = delay(m, Mux(self.is_value, settings.value_base, settings.key_base), 1 + late, name="base")

        token = Cat(C(0, log2_rows), tile)  # of the tile's row 0
        product = multiply(m, Mux(is_value, channel, token[log2_columns:]), stride, name="kv_line")
        groups = Cat(C(0, log2_columns - log2_depth), channel)
        offset = delay(m, Mux(is_value, token[log2_depth:], groups), late + 1, name="kv_offset")
        partial = delay(m, base + product, 1, name="kv_partial")
        total = partial + offset
        limit = kv_writer.ADDRESS_WIDTH - 1
        m.d.sync += self.kv_address.eq(Mux(total[limit:].any(), 1 << limit, total))
        m.d.comb += self.kv_slot.eq(delay(m, tile[: len(self.kv_slot)], LATENCY - 1, name="kv_slot"))
