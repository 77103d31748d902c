# amaranth: UnusedElaboratable=no
import random

import pytest

from hw.bench import run
from moevit.errors import ConfigError
from moevit.hw.interfaces import PARAMETER_READ_LATENCY
from moevit.hw.units.parameter_memory import ParameterMemory


@pytest.mark.parametrize(("depth", "width"), [(48, 96), (5, 8)])
def test_reads_and_writes(depth, width):
    dut = ParameterMemory(depth, width)
    rng = random.Random(depth)

    async def bench(ctx):
        model = [0] * depth
        wanted = []
        written = 0
        for cycle in range(400):
            address, word, enable = rng.randrange(depth), rng.getrandbits(width), rng.random() < 0.6
            # Mostly what was written in the cycle before: it must be there already.
            read = written if rng.random() < 0.5 else rng.randrange(depth)
            ctx.set(dut.write.en, enable)
            ctx.set(dut.write.addr, address)
            ctx.set(dut.write.data, word)
            ctx.set(dut.read.addr, read)
            wanted.append(model[read])
            if enable:
                model[address] = word
            written = address
            await ctx.tick()
            if cycle >= PARAMETER_READ_LATENCY - 1:
                assert ctx.get(dut.read.data) == wanted[cycle - PARAMETER_READ_LATENCY + 1]

    run(dut, bench)


@pytest.mark.parametrize(("depth", "width", "name"), [(0, 8, "depth"), (8, 0, "width")])
def test_bad_arguments(depth, width, name):
    with pytest.raises(ConfigError, match=name):
        ParameterMemory(depth, width)
