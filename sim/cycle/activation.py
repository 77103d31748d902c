"""The activation memory: whose access each cycle is."""

from math import inf


class Claims:
    """The cycles in which one of those that come first reads, or writes.

    ``those`` are stretches in the order of time, each (first cycle, accesses, period, end): so many accesses in a row
    at the beginning of each period.
    """

    def __init__(self) -> None:
        self.those: list[tuple[int, int, int, int]] = []
        self._over = 0  # of ``those``, for all but :meth:`PostClaims.last`

    def add(self, first: int, count: int, period: int, end: int) -> None:
        self.those.append((first, count, period, end))

    def free(self, cycle: int) -> int:
        """The first cycle from ``cycle`` on that is left."""
        those = self.those
        for index in range(self._over, len(those)):
            first, busy, period, end = those[index]
            if first > cycle:
                break
            if cycle < end:
                cycle = end if busy == period else cycle + max(0, busy - (cycle - first) % period)
        return cycle

    def next(self, cycle: int) -> float:
        """No cycle from ``cycle`` to before this one is claimed."""
        those = self.those
        for index in range(self._over, len(those)):
            if those[index][3] > cycle:
                return those[index][0]
        return inf

    def forget(self, cycle: int) -> None:
        """:meth:`free` is not asked for what is before ``cycle`` again."""
        those, index = self.those, self._over
        while index < len(those) and those[index][3] <= cycle:
            index += 1
        self._over = index


class PostClaims(Claims):
    """POST's, which the loader asks for too."""

    def __init__(self) -> None:
        super().__init__()
        self._passed = 0  # of ``those``, for :meth:`last`

    def last(self, start: int, count: int) -> int:
        """The cycle of the last of ``count`` accesses in cycles that are left, from ``start`` on.

        Nobody asks this for what is before ``start`` again.
        """
        those, passed = self.those, self._passed
        while passed < len(those) and those[passed][3] <= start:
            passed += 1
        self._passed = passed
        for index in range(passed, len(those)):
            first, busy, period, end = those[index]
            if start + count <= first:
                break
            if start < first:
                count -= first - start
                start = first
            if start >= end:
                continue
            if busy == period:
                start = end
                continue
            at = (start - first) % period
            start += max(0, busy - at)
            if start >= end:
                continue
            open_ = period - max(busy, at)  # cycles until the next period
            if count > open_:
                whole, rest = divmod(count - open_, period - busy)
                if rest == 0:
                    whole, rest = whole - 1, period - busy
                last = start + open_ + whole * period + busy + rest - 1
            else:
                last = start + count - 1
            if last < end:
                return last
            periods = (end - start - open_) // period
            count -= open_ + periods * (period - busy)
            start = end
        return start + count - 1


class AccessPort:
    """Reads, or writes: POST's come first, then the loader's, then the DMA unit's."""

    def __init__(self) -> None:
        self.post, self.load = PostClaims(), Claims()

    def known(self) -> int:
        """Rises when claims are added."""
        return len(self.post.those) + len(self.load.those)

    def free(self, cycle: int) -> int:
        """The first cycle from ``cycle`` on that is left to the DMA unit."""
        while (then := self.load.free(self.post.free(cycle))) != cycle:
            cycle = then
        return cycle

    def next(self, cycle: int) -> float:
        """All cycles from ``cycle`` to before this one are left to the DMA unit."""
        return min(self.post.next(cycle), self.load.next(cycle))

    def forget(self, cycle: int) -> None:
        """Nobody asks for what is before ``cycle`` again."""
        self.post.forget(cycle)
        self.load.forget(cycle)


class ActivationMemory:
    """Its two ports; who has not the first claim asks :class:`Claims` for what is left."""

    def __init__(self) -> None:
        self.reads, self.writes = AccessPort(), AccessPort()
