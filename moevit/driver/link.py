"""What the driver needs of a way to a machine: its registers, memory that both sides see, its interrupt."""

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

ALIGNMENT = 64  #: of every buffer's address: what the IMAGE register asks for, and a multiple of any bus word


class Buffer(ABC):
    """Memory that host and machine share, contiguous in the machine's addresses.

    address : what the machine's registers are told, a multiple of ALIGNMENT
    size : in bytes
    """

    address: int
    size: int

    @abstractmethod
    def write(self, data: bytes, offset: int = 0) -> None:
        """Put bytes where the machine will read them when it is started next."""

    @abstractmethod
    def read(self, size: int, offset: int = 0) -> bytes:
        """What the machine has written there, once it is done."""

    @abstractmethod
    def free(self) -> None:
        """Give the memory back. A second time does nothing."""


class Link(ABC):
    """A way to one machine.

    name : what messages call it, such as ``serial:/dev/ttyUSB0``
    timeout_s : how long a program may take before the machine counts as hung
    """

    name: str
    timeout_s: float = 10.0

    @abstractmethod
    def read(self, offset: int) -> int:
        """A 32-bit register, by its offset in :mod:`moevit.registers`."""

    @abstractmethod
    def write(self, offset: int, value: int) -> None:
        """Write a 32-bit register."""

    @abstractmethod
    def allocate(self, size: int) -> Buffer:
        """A buffer of ``size`` bytes. Raises DeviceError if there is no room for it."""

    @abstractmethod
    def wait(self, timeout_s: float) -> bool:
        """Return True as soon as the interrupt line is up, or False when the time is over."""

    def power_w(self) -> float | None:
        """What the board draws now, in watts, where it has a sensor."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Let go of the machine; the link is not used after this."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
