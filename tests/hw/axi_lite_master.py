"""An AXI4-Lite master for Amaranth's simulator."""

import random

from moevit.hw.units.control import OKAY
from moevit.registers import OFFSETS


class Master:
    """An AXI4-Lite master that sends address and data in any order and takes responses late."""

    def __init__(self, ctx, axil, seed=0, stall=0.0):
        self.ctx, self.axil, self.rng, self.stall = ctx, axil, random.Random(seed), stall

    async def _wait(self):
        while self.rng.random() < self.stall:
            await self.ctx.tick()

    async def _send(self, channels):
        """Each channel is (valid, ready); they start in random order and end when taken."""
        ctx, waiting, active = self.ctx, list(channels), []
        self.rng.shuffle(waiting)
        while waiting or active:
            while waiting and (self.rng.random() >= self.stall):
                active.append(waiting.pop())
                ctx.set(active[-1][0], 1)
            taken = [c for c in active if ctx.get(c[1])]
            await ctx.tick()
            for channel in taken:
                ctx.set(channel[0], 0)
                active.remove(channel)

    async def write(self, address, value, strobe=0xF):
        ctx, axil = self.ctx, self.axil
        address = OFFSETS.get(address, address)
        for signal, v in ((axil.awaddr, address), (axil.wdata, value), (axil.wstrb, strobe)):
            ctx.set(signal, v)
        await self._send([(axil.awvalid, axil.awready), (axil.wvalid, axil.wready)])
        await self._wait()
        ctx.set(axil.bready, 1)
        (response,) = await ctx.tick().sample(axil.bresp).until(axil.bvalid)
        ctx.set(axil.bready, 0)
        return response

    async def read(self, address):
        ctx, axil = self.ctx, self.axil
        ctx.set(axil.araddr, OFFSETS.get(address, address))
        await self._send([(axil.arvalid, axil.arready)])
        await self._wait()
        ctx.set(axil.rready, 1)
        value, response = await ctx.tick().sample(axil.rdata, axil.rresp).until(axil.rvalid)
        ctx.set(axil.rready, 0)
        return value, response

    async def value(self, address):
        value, response = await self.read(address)
        assert response == OKAY
        return value
