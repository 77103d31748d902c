"""Addresses for buffers, in a memory that nobody else gives out: first fit, with gaps closed again."""

from moevit.driver.link import ALIGNMENT
from moevit.errors import DeviceError


class Arena:
    """The bytes from ``base`` on, of which none is given out twice.

    Parameters
    ----------
    base : the first address, a multiple of ALIGNMENT
    size : in bytes
    where : whose memory this is, for messages
    """

    def __init__(self, base: int, size: int, where: str) -> None:
        if base % ALIGNMENT:
            raise ValueError(f"the memory begins at 0x{base:x}, which is not a multiple of {ALIGNMENT}")
        self.base, self.size, self.where = base, size, where
        self._taken: dict[int, int] = {}  # address: end, in the order of addresses

    def take(self, size: int) -> int:
        """The address of ``size`` bytes that are free. Raises DeviceError if there is no such gap."""
        address = self.base
        for first, end in self._taken.items():
            if first - address >= size:
                break
            address = end
        if address + size > self.base + self.size:
            raise DeviceError(
                f"no room for a buffer of {size:,} bytes: {self.size:,} bytes of memory, "
                f"{sum(end - first for first, end in self._taken.items()):,} of them in use",
                where=self.where, mend="choose a smaller model, or free what is not needed",
            )  # fmt: skip
        self._taken[address] = address + -(-max(size, 1) // ALIGNMENT) * ALIGNMENT
        self._taken = dict(sorted(self._taken.items()))
        return address

    def free(self, address: int) -> None:
        """Give back what :meth:`take` returned."""
        del self._taken[address]
