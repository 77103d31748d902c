"""The DRAM model of the rtl back-end, burst by burst."""

from collections import deque
from math import inf

from moevit.config import AcceleratorConfig
from moevit.sim.cycle import units
from moevit.sim.dram import DramModel

ENDED = 2  # AxiReadBus: from the cycle after a burst's last beat to an arvalid, when all that may be are outstanding


class Port:
    """One or several ports that all do the same at the same time; ``outstanding`` bursts of each are on their way."""

    def __init__(self, ports: int, outstanding: int) -> None:
        self.ports = ports
        self.free = 0.0  # the cycle after its last beat
        self.ends = deque([-ENDED] * outstanding, maxlen=outstanding)


class Dram:
    """What the ports have of the bandwidth: as much as they take, or equal shares of it.

    Bursts are asked for as they are raised. Those that are asked for later do not slow those that were before.

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
        self._in_turn = min(config.weight_ports, units.BURST_BEATS / units.PACE_CYCLES)  # that read at the same time
        self._all = (self.weights, self.shared, self.writes)
        self._ports = sum(port.ports for port in self._all)
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
        """The cycle after the last of so many beats from ``start`` on, which could have come in cycle ``due``."""
        if self._beats >= self._ports:
            return start + beats
        left = float(beats)
        weights = self._in_turn if due < self.paced_until else self.weights.ports
        while True:
            taken, until = weights if port is self.weights else port.ports, inf
            for other in self._all:
                if other is port:
                    continue
                # One that has more to bring than it can by now is taken to go on like that.
                ports = weights if other is self.weights else other.ports
                if other.free > due + units.BURST_BEATS:
                    taken += ports
                elif other.free > start:
                    taken += ports
                    until = min(until, other.free)
            rate = min(1.0, self._beats / taken)
            if left <= (until - start) * rate:
                return start + left / rate
            left -= (until - start) * rate
            start = until
