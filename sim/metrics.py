"""How near a task's outputs come to others: to the float model's, and to the truth."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


def distance(got: Floats, want: Floats) -> dict[str, float]:
    """Outputs [N, ...] beside the float model's.

    ``cosine`` is the mean over the N of the cosine between the flattened outputs, ``max_abs_err`` the largest
    difference of any value, ``relative_rms_err`` the root of the mean square difference over that of ``want``.
    """
    a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (got, want))
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    same = (a == b).all(axis=1)
    cosine = np.where(same, 1.0, (a * b).sum(axis=1) / np.where(norms > 0, norms, 1.0))
    power = float((b**2).sum())
    error = float(((a - b) ** 2).sum())
    return {
        "cosine": float(cosine.mean()),
        "max_abs_err": float(np.abs(a - b).max()),
        "relative_rms_err": (error / power) ** 0.5 if power else error**0.5,
    }


def classification(got: Floats, want: Floats, labels: NDArray | None) -> dict[str, float]:
    """Logits [N, classes]: how often both have the same largest one, and with labels [N] how often that is right."""
    mine, reference = got.argmax(axis=1), want.argmax(axis=1)
    out = {"top1_agreement": float((mine == reference).mean())}
    if labels is not None:
        out["top1_float"] = float((reference == labels).mean())
        out["top1_int8"] = float((mine == labels).mean())
    return out


def against_target(got: Floats, want: Floats, target: NDArray) -> dict[str, float]:
    """Figures of both against targets: ``rmse`` for float targets of the outputs' shape, which may lack an axis of
    one channel; ``miou`` for class numbers [N, H, W] and scores [N, classes, H, W], over the classes that occur;
    pixels of no class are left out."""
    if target.dtype.kind == "f" and got.ndim == 4 and got.shape[1] == 1 and target.shape == (len(got), *got.shape[2:]):
        target = target[:, None]
    if target.shape == got.shape and target.dtype.kind == "f":
        return {f"rmse_{k}": float(np.sqrt(((x - target) ** 2).mean())) for k, x in (("float", want), ("int8", got))}
    if got.ndim == 4 and target.shape == (len(got), *got.shape[2:]) and target.dtype.kind in "iu":
        return {f"miou_{k}": _miou(x.argmax(axis=1), target, got.shape[1]) for k, x in (("float", want), ("int8", got))}
    return {}


def _miou(classes: NDArray, target: NDArray, count: int) -> float:
    valid = (target >= 0) & (target < count)
    pairs = target[valid].astype(np.int64) * count + classes[valid]
    confusion = np.bincount(pairs, minlength=count * count).reshape(count, count)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - np.diag(confusion)
    occurs = union > 0
    return float((np.diag(confusion)[occurs] / union[occurs]).mean()) if occurs.any() else 0.0
