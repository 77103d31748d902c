"""Watches every channel at the pins and records what AXI4 or the machine's own promises do not allow."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from cocotb.triggers import RisingEdge

from moevit.config import AcceleratorConfig
from moevit.hw.units.axi_read import BURST_BEATS, AxiReadPort
from moevit.hw.units.axi_write import AxiWritePort
from moevit.hw.units.read_mux import ReadMux

BOUNDARY = 4096
BURST_INCR = 1


@dataclass
class Channel:
    """One valid/ready channel."""

    name: str
    valid: object
    ready: object
    payload: dict[str, object]
    accept: Callable[[dict[str, int]], None] | None = None  #: called with the payload of each transfer
    stable: bool = True  #: driven by the machine, so held to the rules
    held: dict[str, int] | None = None  #: payload that waits for ready
    raised: int = 0  #: cycle in which it was first seen valid
    waits: int = 0  #: cycles in which it was valid and not ready


@dataclass
class Port:
    """An AXI4 port's traffic."""

    name: str
    outstanding_reads: int = 0
    outstanding_writes: int = 0
    most_reads: int = 0
    most_writes: int = 0
    read_limit: int = 0
    write_limit: int = 0
    requests: list[int] = field(default_factory=list)  #: cycles in which AR or AW were raised
    write_lengths: deque[int] = field(default_factory=deque)  #: beats of AWs that wait for data
    write_bursts: deque[int] = field(default_factory=deque)  #: beats of data that wait for their AW
    write_beats: int = 0
    longest: int = 0  #: beats


class Monitor:
    """Protocol checker of all ports of the machine.

    Checked are: valid stays until ready and the payload with it; INCR bursts of whole, aligned bus words,
    not longer than promised and not across a 4 KB boundary; WLAST on the last beat and on no other; no more
    bursts outstanding than promised.
    """

    def __init__(self, dut, config: AcceleratorConfig) -> None:
        self.dut, self.config = dut, config
        self.cycle = 0
        self.violations: list[str] = []
        self.error_cycle: int | None = None  #: in which the first SLVERR or DECERR was transferred
        self.ports: dict[str, Port] = {}
        self.channels = self._lite_channels()
        dma = Port("dma", read_limit=ReadMux(config, 2).outstanding, write_limit=AxiWritePort(config).outstanding)
        self._add_read(dma)
        self._add_write(dma)
        for index in range(config.weight_ports):
            self._add_read(Port(f"w{index}", read_limit=AxiReadPort(config).outstanding))

    def outstanding(self) -> int:
        """Bursts whose address was accepted and whose answer has not come."""
        return sum(p.outstanding_reads + p.outstanding_writes for p in self.ports.values())

    def requests_since(self, cycle: int) -> list[str]:
        """Ports of the bursts that were raised at ``cycle`` or later."""
        return [p.name for p in self.ports.values() for raised in p.requests if raised >= cycle]

    def waiting(self) -> list[str]:
        """Address channels that are valid and not accepted."""
        return [c.name for c in self.channels if c.name.endswith((".ar", ".aw")) and c.held is not None and c.stable]

    async def run(self) -> None:
        edge = RisingEdge(self.dut.clk)
        watched = [(c, c.valid, c.ready) for c in self.channels]
        while True:
            await edge
            self.cycle += 1
            for channel, valid, ready in watched:
                if valid.value:
                    self._valid(channel, bool(ready.value))
                elif channel.held is not None:
                    self.violate(f"{channel.name}: valid fell before ready")
                    channel.held = None

    def violate(self, text: str) -> None:
        self.violations.append(f"cycle {self.cycle}: {text}")

    def _valid(self, channel: Channel, ready: bool) -> None:
        payload = {name: int(signal.value) for name, signal in channel.payload.items()}
        if channel.held is None:
            channel.raised = self.cycle
        elif payload != channel.held:
            self.violate(f"{channel.name}: payload changed from {channel.held} to {payload} before ready")
        if not ready:
            channel.waits += 1
            channel.held = payload if channel.stable else None
            return
        channel.held = None
        if channel.accept is not None:
            channel.accept(payload)

    def _signals(self, prefix: str, channel: str, names: tuple[str, ...]) -> tuple[object, object, dict[str, object]]:
        def get(name: str):
            return getattr(self.dut, f"{prefix}_{channel}{name}")

        return get("valid"), get("ready"), {name: get(name) for name in names}

    def _lite_channels(self) -> list[Channel]:
        r = self._signals("s_axil", "r", ("data", "resp"))
        b = self._signals("s_axil", "b", ("resp",))
        return [Channel("s_axil.r", *r), Channel("s_axil.b", *b)]

    def _add_read(self, port: Port) -> None:
        self.ports[port.name] = port
        prefix = f"m_axi_{port.name}"
        names = ("id", "addr", "len", "size", "burst", "prot", "cache")

        def address(payload: dict[str, int]) -> None:
            self._burst(port, f"{port.name}.ar", payload)
            port.requests.append(channel.raised)
            port.outstanding_reads += 1
            port.most_reads = max(port.most_reads, port.outstanding_reads)
            if port.outstanding_reads > port.read_limit:
                self.violate(f"{port.name}: {port.outstanding_reads} reads outstanding")

        def data(payload: dict[str, int]) -> None:
            port.outstanding_reads -= payload["last"]
            self._response(payload)

        channel = Channel(f"{port.name}.ar", *self._signals(prefix, "ar", names), accept=address)
        beats = Channel(f"{port.name}.r", *self._signals(prefix, "r", ("last", "resp")), accept=data, stable=False)
        self.channels += [channel, beats]

    def _add_write(self, port: Port) -> None:
        prefix = f"m_axi_{port.name}"
        names = ("id", "addr", "len", "size", "burst", "prot", "cache")

        def address(payload: dict[str, int]) -> None:
            self._burst(port, f"{port.name}.aw", payload)
            port.requests.append(channel.raised)
            port.write_lengths.append(payload["len"] + 1)
            port.outstanding_writes += 1
            port.most_writes = max(port.most_writes, port.outstanding_writes)
            if port.outstanding_writes > port.write_limit:
                self.violate(f"{port.name}: {port.outstanding_writes} writes outstanding")
            self._match(port)

        def data(payload: dict[str, int]) -> None:
            port.write_beats += 1
            if payload["last"]:
                port.write_bursts.append(port.write_beats)
                port.write_beats = 0
            self._match(port)

        def answer(payload: dict[str, int]) -> None:
            port.outstanding_writes -= 1
            self._response(payload)

        channel = Channel(f"{port.name}.aw", *self._signals(prefix, "aw", names), accept=address)
        beats = Channel(f"{port.name}.w", *self._signals(prefix, "w", ("data", "strb", "last")), accept=data)
        answers = Channel(f"{port.name}.b", *self._signals(prefix, "b", ("resp",)), accept=answer, stable=False)
        self.channels += [channel, beats, answers]

    def _response(self, payload: dict[str, int]) -> None:
        if payload["resp"] & 2 and self.error_cycle is None:
            self.error_cycle = self.cycle

    def _match(self, port: Port) -> None:
        """WLAST must come with the beat that the burst's address announced."""
        if port.write_lengths and port.write_beats >= port.write_lengths[0]:
            self.violate(f"{port.name}: no WLAST on beat {port.write_lengths[0]} of a burst")
        while port.write_lengths and port.write_bursts:
            length, beats = port.write_lengths.popleft(), port.write_bursts.popleft()
            if length != beats:
                self.violate(f"{port.name}: WLAST on beat {beats} of a burst of {length}")

    def _burst(self, port: Port, name: str, payload: dict[str, int]) -> None:
        port.longest = max(port.longest, payload["len"] + 1)
        size = self.config.axi_bytes
        end = payload["addr"] % BOUNDARY + (payload["len"] + 1) * size
        rules = {
            "is not INCR": payload["burst"] != BURST_INCR,
            "has beats that are not bus words": 1 << payload["size"] != size,
            "is not aligned": payload["addr"] % size != 0,
            "crosses a 4 KB boundary": end > BOUNDARY,
            f"is longer than {BURST_BEATS} beats": payload["len"] >= BURST_BEATS,
            "has an ID": payload["id"] != 0,
        }
        for rule, broken in rules.items():
            if broken:
                self.violate(f"{name}: burst {payload} {rule}")
