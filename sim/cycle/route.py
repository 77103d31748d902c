"""A gate: when row tiles of logits are worked off and their tokens in the queues."""

from moevit.config import AcceleratorConfig
from moevit.isa import Linear
from moevit.sim.cycle import units

MIN_PASSES = 2  #: route.py, _MIN_PASSES


class Route:
    """Route: two row tiles of logits, and passes over them one after the other.

    Members
    -------
    freed : the cycle in which each row tile has been worked off
    """

    def __init__(self, config: AcceleratorConfig, latencies: units.Latencies) -> None:
        self._latencies = latencies
        self.freed: list[int] = []
        self._issued: list[int] = []  # a row tile's last slot
        self._over = 0  # a row tile's last step

    def tile(self, gate: Linear, rows: int, come: int) -> int:
        """The cycle of the last append of a row tile whose last row comes in cycle ``come``."""
        latencies = self._latencies
        tiles = min(gate.tiles, latencies.route_words)
        load = max(come + units.ROUTE_START - 1, self._over)
        if len(self._issued) >= 2:
            load = max(load, self._issued[-2] + 1)
        spacing = max(rows * tiles, latencies.pass_spacing(tiles))
        self._over = load + (max(gate.top_k, MIN_PASSES) - 1) * spacing + rows * tiles
        self.freed.append(self._over + 1)
        first_row = self._over - (rows - 1) * tiles
        first_slot = first_row + latencies.select + units.READY_LATENCY
        if self._issued:
            first_slot = max(first_slot, self._issued[-1] + 1)
        slots = max(rows * gate.top_k, (rows - 1) * tiles + gate.top_k)
        self._issued.append(first_slot + slots - 1)
        return self._issued[-1] + units.APPEND_LATENCY
