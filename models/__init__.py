"""Trained models that ship with moevit, and the scripts that make them.

`train`, `export`, `evaluate` and `subset` are commands (``python -m moevit.models.train --help``). Training
and export need PyTorch (the ``train`` extra); reading the committed model and its images needs NumPy alone.
Nothing in here depends on the hardware, the simulators or the compiler.
"""

from pathlib import Path

__all__ = ["FASHION_VIT", "fashion_vit_path"]

#: Folder of the shipped Fashion-MNIST vision transformer.
FASHION_VIT = Path(__file__).resolve().parent / "fashion_vit"


def fashion_vit_path(name: str = "fashion_vit.onnx") -> Path:
    """Return the path of one file of the shipped model.

    Parameters
    ----------
    name
        ``fashion_vit.onnx``, ``test_images.npz``, ``calib_images.npz``, ``metrics.json``, ``train_log.csv``
        or ``checkpoint.pt``.

    Raises
    ------
    FileNotFoundError
        The shipped model has no such file.
    """
    path = FASHION_VIT / name
    if not path.is_file():
        have = ", ".join(sorted(p.name for p in FASHION_VIT.glob("*"))) or "nothing"
        raise FileNotFoundError(f"the shipped model has no file {name!r}; it has: {have}")
    return path
