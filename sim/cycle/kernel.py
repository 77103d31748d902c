"""Processes that wait for each other's times."""

from collections.abc import Generator
from heapq import heappop, heappush


class Times(list[int]):
    """When the first, the second, … event of a kind happens; known up to the last that is there, in rising order.

    Who appends to it calls ``Kernel.wake`` when somebody may be waiting.
    """

    __slots__ = ("waiting",)

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[Process] = []


#: yields a time to go on at, or the Times that have to grow first
Process = Generator[int | Times, None, None]
#: part of a process, which gives it a time
Step = Generator[int | Times, None, int]


class Kernel:
    """Runs processes, of those that can the one that is furthest behind.

    So what several of them share is asked for in the order of time, as far as they do not wait for what is later; and
    none waits for a cycle to pass.
    """

    def __init__(self) -> None:
        self._ready: list[tuple[int, int, Process]] = []
        self._count = 0  # makes ties fair, and processes need no order

    def start(self, process: Process, time: int = 0) -> None:
        self._count += 1
        heappush(self._ready, (time, self._count, process))

    def wake(self, times: Times) -> None:
        """Lets those who wait for more of ``times`` look again."""
        waiting, times.waiting = times.waiting, []
        for process in waiting:
            self.start(process, times[-1] if times else 0)

    def run(self) -> None:
        """Until nobody can go on."""
        ready = self._ready
        while ready:
            _, _, process = heappop(ready)
            for wish in process:
                if isinstance(wish, Times):
                    wish.waiting.append(process)
                    break
                if ready and ready[0][0] < wish:
                    self._count += 1
                    heappush(ready, (wish, self._count, process))
                    break
