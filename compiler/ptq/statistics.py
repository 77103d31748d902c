"""What the float model's tensors look like over calibration inputs, channel by channel."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SPREAD = 4.0  #: standard deviations that a channel is expected to reach
MANY = 1000  #: tokens that show more of a channel's extremes than its deviation says
BUCKETS = 1 << 15  #: of positive float32 values: eight bits of exponent, the first seven of the fraction


@dataclass(frozen=True)
class Range:
    """Smallest and largest value seen; zero is always inside."""

    low: float
    high: float

    @property
    def peak(self) -> float:
        """Largest magnitude; positive even when all values were zero."""
        return max(-self.low, self.high, 1e-6)

    def joined(self, other: "Range") -> "Range":
        """What both have seen."""
        return Range(min(self.low, other.low), max(self.high, other.high))


@dataclass(frozen=True, eq=False, kw_only=True)
class Channels:
    """Each channel of a tensor `(tokens, channels)`: extremes, mean and mean square, over ``count`` tokens."""

    low: Floats
    high: Floats
    mean: Floats
    square: Floats
    count: int

    @classmethod
    def of(cls, values: NDArray) -> "Channels":
        """Of `(..., channels)`."""
        flat = values.reshape(-1, values.shape[-1])
        return cls(
            low=flat.min(axis=0).astype(np.float64), high=flat.max(axis=0).astype(np.float64),
            mean=flat.mean(axis=0, dtype=np.float64),
            square=np.einsum("tc,tc->c", flat, flat).astype(np.float64) / len(flat), count=len(flat),
        )  # fmt: skip

    @property
    def expected(self) -> tuple[Floats, Floats]:
        """Extremes that other inputs may be expected to have: those seen, or where ``MANY`` tokens have not been seen,
        what lies ``SPREAD`` standard deviations from the mean, and less the more there were."""
        deviation = SPREAD * min(1.0, MANY / self.count) * np.sqrt(self.power(self.mean))
        return np.minimum(self.low, self.mean - deviation), np.maximum(self.high, self.mean + deviation)

    @property
    def middle(self) -> Floats:
        """Half way between the expected extremes."""
        low, high = self.expected
        return (low + high) / 2

    @property
    def half(self) -> Floats:
        """Half of what lies between the expected extremes."""
        low, high = self.expected
        return (high - low) / 2

    def power(self, shift: Floats) -> Floats:
        """Mean square of the channels minus ``shift``."""
        return np.maximum(self.square - 2 * shift * self.mean + shift**2, 0)

    def joined(self, other: "Channels") -> "Channels":
        """Of both one's tokens."""
        count = self.count + other.count
        a, b = self.count / count, other.count / count
        return Channels(
            low=np.minimum(self.low, other.low), high=np.maximum(self.high, other.high),
            mean=a * self.mean + b * other.mean, square=a * self.square + b * other.square, count=count,
        )  # fmt: skip

    def changed(self, scale: Floats, shift: Floats) -> "Channels":
        """Of ``(x - shift) / scale``, for positive scales."""
        return Channels(
            low=(self.low - shift) / scale, high=(self.high - shift) / scale, mean=(self.mean - shift) / scale,
            square=self.power(shift) / scale**2, count=self.count,
        )  # fmt: skip


def buckets(values: NDArray, weights: Floats) -> Floats:
    """A histogram of the positive ones among ``values`` `(..., channels)`, each channel with a weight, `(BUCKETS,)`.

    A bucket holds the values that agree in the leading 16 bits, so its width is below 1 % of them.
    """
    flat = np.ascontiguousarray(values, np.float32).reshape(-1, values.shape[-1])
    number = np.maximum(flat.view(np.int32) >> 16, 0)
    return np.bincount(number.ravel(), np.broadcast_to(weights, flat.shape).ravel(), BUCKETS).astype(np.float64)


def bucket_values() -> Floats:
    """The middle of each bucket, `(BUCKETS,)`; those beyond the finite ones are zero."""
    middle = ((np.arange(BUCKETS, dtype=np.int32) << 16) | (1 << 15)).view(np.float32)
    return np.where(np.isfinite(middle), middle, np.float32(0)).astype(np.float64)


@dataclass(frozen=True, eq=False)
class Statistics:
    """What calibration has seen, by tensor; `calibrate.observe` says what belongs to mixtures of experts.

    Parameters
    ----------
    ranges : of all tensors
    channels : of those that are matrices of tokens and channels
    hidden : `buckets` of what activations give, each channel weighted with the power of the weights that read it
    """

    ranges: dict[str, Range]
    channels: dict[str, Channels]
    hidden: dict[str, Floats]

    def changed(self, tensor: str, scale: Floats, shift: Floats, margin: float = 1.0) -> "Statistics":
        """With ``(x - shift) / scale`` in place of a tensor's channels x, and its range wider by a factor."""
        channels = self.channels[tensor].changed(scale, shift)
        low, high = channels.expected
        seen = Range(margin * min(float(low.min()), 0.0), margin * max(float(high.max()), 0.0))
        return replace(self, ranges=self.ranges | {tensor: seen}, channels=self.channels | {tensor: channels})


@dataclass(frozen=True, eq=False, kw_only=True)
class Calibrated:
    """What calibration knows of a graph.

    Parameters
    ----------
    whole : what was seen of all images
    part : of all but some
    held : those images `(B, ...)` by input, on which is tried what ``part`` suggests
    fresh : whether ``part`` has not seen them; one image alone must serve for both
    """

    whole: Statistics
    part: Statistics
    held: Mapping[str, NDArray]
    fresh: bool
