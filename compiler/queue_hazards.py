"""What the experts' queues hold, as far as a program alone says it, and who may use them when.

Which tokens a queue holds is only known when the machine runs; that they are among those of the gates since the
last one that cleared, and that nobody asks before the last of these gates has retired, is known from the program.
A gate that fills queues anew disturbs no earlier LINEAR that reads them: the loader takes instructions one after
the other, so it has read a queue to its end before it gives the array the first row of a later gate.
"""

import numpy as np
from numpy.typing import NDArray

from moevit.config import AcceleratorConfig
from moevit.errors import HazardError
from moevit.isa import Linear, NormMode, OutputType
from moevit.isa.formats import COUNT
from moevit.numerics.activation import Activation
from moevit.numerics.route import MAX_EXPERTS, MAX_TOP_K


def of_queue(n: Linear) -> bool:
    """Whether its rows are those of a queue."""
    return bool(n.gather or n.scatter)


class Queues:
    """The gates since the last one that cleared."""

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        self.done = 0  #: retired count at which the queues are complete; 0: nothing is known of them
        self.tokens: NDArray[np.int64] = np.zeros(0, np.int64)  #: those that they may hold, in their order
        self.entries = 0  #: that they hold together, at most

    def check_gate(self, n: Linear, where: str) -> None:
        """Check what stands in a gate itself."""
        columns = n.tiles * self.config.columns
        if of_queue(n) or n.residual or n.activation or not n.key_tile == n.value_tile == n.tiles:
            raise HazardError("a gate has no queue, no residual, no activation, no K and no V", where=where)
        if not 1 <= n.experts <= min(MAX_EXPERTS, columns):
            raise HazardError(f"{n.experts} experts; there are {columns} columns and {MAX_EXPERTS} queues", where=where)
        if not 1 <= n.top_k <= min(MAX_TOP_K, n.experts):
            raise HazardError(f"{n.top_k} of {n.experts} experts for each token", where=where)
        if n.token + n.n_rows > 1 << COUNT:
            raise HazardError(f"tokens up to {n.token + n.n_rows - 1} are too many for a queue entry", where=where)

    def append(self, n: Linear, done: int, where: str) -> None:
        """The queues after a gate, which retires as number ``done``."""
        if n.clear:
            self.tokens, self.entries = self.tokens[:0], 0
        elif not self.done:
            raise HazardError("appends to queues that nothing has cleared", where=where)
        elif n.token <= self.tokens[-1]:
            # A token that is in a queue twice would be read, added to and written twice by one instruction.
            raise HazardError(f"token {n.token} is appended behind token {self.tokens[-1]}", where=where)
        self.done = done
        self.tokens = np.concatenate([self.tokens, np.arange(n.token, n.token + n.n_rows)])
        self.entries += n.n_rows * n.top_k
        if self.entries > self.config.queue_entries:
            raise HazardError(
                f"the queues may get {self.entries} entries; they hold {self.config.queue_entries}", where=where
            )

    def check_reader(self, n: Linear, where: str) -> None:
        """Check a LINEAR over a queue."""
        if n.norm != NormMode.NONE or n.keep or not n.key_tile == n.value_tile == n.tiles or not n.release:
            raise HazardError("a LINEAR over a queue has no norm, no K and no V, and releases its weights", where=where)
        plain = n.activation == Activation.NONE and n.out_type == OutputType.INT16 and n.residual and n.res == n.dst
        if n.scatter and not plain:
            raise HazardError("scatter adds to int16 rows in place, without an activation", where=where)
        if not self.done:
            raise HazardError("reads a queue that no gate has filled", where=where)
        if n.wait < self.done:
            raise HazardError(
                f"reads a queue that is complete when the gate retires as number {self.done}",
                where=where, mend=f"it waits for {n.wait} only",
            )  # fmt: skip
        if n.n_rows < len(self.tokens):
            raise HazardError(f"allows {n.n_rows} rows; its queue may hold {len(self.tokens)}", where=where)

    def mark(self, n: Linear) -> int:
        """A number for rows whose meaning depends on the queue as it is now."""
        return self.done * MAX_EXPERTS + n.queue
