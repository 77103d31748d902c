"""The DRAM model of the rtl back-end, burst by burst."""

from collections import deque

from moevit.config import AcceleratorConfig
from moevit.sim.cycle import units
from moevit.sim.dram import DramModel

ENDED = 2  # AxiReadBus: from the cycle after a burst's last beat to an arvalid, when all that may be are outstanding
EPSILON = 1e-6  # beats, or cycles: what rounding leaves


class Port:
    """One or several ports that all do the same at the same time; ``outstanding`` bursts of each are on their way.

    ``free`` is the cycle after its last beat. Its bursts so far were laid out with each other port's up to ``counted``
    in mind.
    """

    def __init__(self, ports: int, outstanding: int) -> None:
        self.ports = ports
        self.free = 0.0
        self.ends = deque([-ENDED] * outstanding, maxlen=outstanding)
        self.others: list[Port] = []
        self.counted: dict[Port, float] = {}


class Dram:
    """What the ports have of the bandwidth: as much as they take, or equal shares of it.

    Bursts are asked for as they are raised, and when each ends is said at once. What another port takes that asks later
    is made up for by the bursts that follow, so that all together never have more than there is.

    Parameters
    ----------
    config, dram : the machine and its memory

    Members
    -------
    weights, shared, writes : the weight ports, the port of instructions and copies, and its other direction
    paced_from, paced_until : when the weight ports begin and cease to take turns; no copy that is to come is known
    """

    def __init__(self, config: AcceleratorConfig, dram: DramModel) -> None:
        self.latency = dram.latency_cycles
        most = dram.outstanding_bursts
        self.weights = Port(config.weight_ports, min(units.PORT_OUTSTANDING, most))
        self.shared = Port(1, min(units.SHARED_OUTSTANDING, most))
        self.writes = Port(1, 1)
        self.paced_from, self.paced_until = 0.0, 0.0
        self._turns = config.weight_ports * units.PACE_CYCLES
        self._turn = units.BURST_BEATS / self._turns  # beats a cycle of a weight port that takes turns
        every = (self.weights, self.shared, self.writes)
        for port in every:
            port.others = [other for other in every if other is not port]
            port.counted = dict.fromkeys(port.others, 0.0)
        self._ports = sum(port.ports for port in every)
        self._beats = dram.bytes_per_cycle / config.axi_bytes  # of all ports, in a cycle

    def turn(self, time: int) -> int:
        """When the last of the weight ports raises a burst that all of them would raise at ``time``: BurstPacer."""
        if time >= self.paced_until:
            return time
        since = int(self.paced_from)
        return since + (time - since + self._turns) // units.PACE_CYCLES * units.PACE_CYCLES

    def read(self, port: Port, raised: int, beats: int) -> tuple[int, float, float]:
        """For a burst that a port would raise in cycle ``raised``: the cycle in which it does, that of the first beat,
        and the one after the last."""
        raised = max(raised, port.ends[0] + ENDED)
        start = max(raised + self.latency, port.free)
        port.free = self._end(port, raised + self.latency, start, beats)
        port.ends.append(int(port.free))
        return raised, start, port.free

    def write(self, time: int, beats: int) -> float:
        """The cycle after the last of so many beats that are there from ``time`` on."""
        self.writes.free = self._end(self.writes, time, max(time, self.writes.free), beats)
        return self.writes.free

    def _end(self, port: Port, due: int, start: float, beats: int) -> float:
        """The cycle after the last of so many beats from ``start`` on, which could have come in cycle ``due``.

        From ``start`` to the end, in stretches in which the same ports read or write.
        """
        if self._beats >= self._ports:
            return start + beats
        left = float(beats)
        paced = due < self.paced_until
        while True:
            others = [other for other in port.others if other.free > start + EPSILON]
            rate = self._rate(port, others, paced)
            stop = start + left / rate
            if not others:
                return stop
            slower: list[tuple[Port, float]] = []  # those that had not known of this port, and what they lose
            for other in others:
                counted, free = other.counted[port], other.free
                if counted <= start:
                    slow = 1 - rate / self._rate(other, [p for p in others if p is not other], paced)
                    slower.append((other, slow))
                    free = start + (free - start) / (1 - slow)
                elif counted < free:
                    free = counted
                stop = min(stop, free)
            for other, slow in slower:
                other.free += (stop - start) * slow
            for other in others:
                port.counted[other] = stop
            left -= (stop - start) * rate
            start = stop
            if left < EPSILON:
                return start

    def _rate(self, port: Port, others: list[Port], paced: bool) -> float:
        """Beats a cycle of each of these ports, when all want some: those that want less than an equal share leave the
        rest to the others."""
        ports = port.ports
        for other in others:
            ports += other.ports
        share = self._beats / ports
        if paced and self._turn < share and (port is self.weights or self.weights in others):
            ports -= self.weights.ports
            share = (self._beats - self.weights.ports * self._turn) / ports if ports else 1.0
        return share if share < 1 else 1.0
