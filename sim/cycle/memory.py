"""The DRAM model of the rtl back-end, burst by burst."""

from collections import deque

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
    weights, shared : the weight ports, and the port of instructions and copies
    """

    def __init__(self, config: AcceleratorConfig, dram: DramModel) -> None:
        self.latency = dram.latency_cycles
        most = dram.outstanding_bursts
        self.weights = Port(config.weight_ports, min(units.PORT_OUTSTANDING, most))
        self.shared = Port(1, min(units.SHARED_OUTSTANDING, most))
        self._beats = dram.bytes_per_cycle / config.axi_bytes  # of all ports, in a cycle

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
        self.shared.free = self._end(self.shared, time, max(time, self.shared.free), beats)
        return self.shared.free

    def _end(self, port: Port, due: int, start: float, beats: int) -> float:
        other = self.shared if port is self.weights else self.weights
        alone = min(1.0, self._beats / port.ports)
        both = min(1.0, self._beats / (port.ports + other.ports))
        together = max(0.0, other.free - start)
        # A port that has more to bring than it can by now is taken to go on like that.
        if other.free > due + units.BURST_BEATS or beats <= together * both:
            return start + beats / both
        return start + together + (beats - together * both) / alone
