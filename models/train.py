"""Train the shipped vision transformer on Fashion-MNIST (needs the train extra).

The seed fixes the data order, the augmentation and the initial weights; the figures still depend a little on
torch's version and the number of threads, because sums are then taken in another order.
"""

import argparse
import csv
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moevit.errors import InputError

from ._cli import TRAIN_EXTRA, Progress, add_data_argument, main_wrapper, require, write_json
from .fashion_mnist import load

if TYPE_CHECKING:
    import torch

    from .vit import ViT

__all__ = ["main", "train"]


def _augment(images: "torch.Tensor", generator: "torch.Generator") -> "torch.Tensor":
    """Flip each image with probability 1/2 and shift it by up to one pixel each way."""
    import torch

    batch, _, height, width = images.shape
    flip = torch.rand(batch, generator=generator) < 0.5
    images = torch.where(flip[:, None, None, None], images.flip(3), images)
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1))
    shift = torch.randint(0, 3, (2, batch), generator=generator)
    rows = shift[0][:, None, None] + torch.arange(height)[None, :, None]
    cols = shift[1][:, None, None] + torch.arange(width)[None, None, :]
    return padded[torch.arange(batch)[:, None, None], 0, rows, cols][:, None]


def _top1(model: "ViT", images: "torch.Tensor", labels: "torch.Tensor") -> float:
    import torch

    model.eval()
    with torch.inference_mode():
        right = sum(
            int((model(images[i : i + 500]).argmax(1) == labels[i : i + 500]).sum())
            for i in range(0, len(labels), 500)
        )
    model.train()
    return right / len(labels)


def train(
    data: Path,
    out: Path,
    *,
    epochs: int = 16,
    batch: int = 64,
    learning_rate: float = 1.5e-3,
    validation: int = 2000,
    limit: int | None = None,
    threads: int | None = None,
    seed: int = 1,
) -> dict[str, Any]:
    """Train `FASHION` and write ``checkpoint.pt``, ``train_log.csv`` and ``metrics.json`` to `out`.

    The last `validation` training images are held out and watched in the log; the test images are used once,
    at the end.

    Parameters
    ----------
    data
        Folder of the IDX files.
    out
        Folder for the results; made if missing.
    epochs, batch, learning_rate
        The schedule: AdamW, one epoch of linear warm-up, then a cosine to zero.
    validation
        Training images held out.
    limit
        Use only so many training images (to try the command out).
    threads
        Threads for torch; its default otherwise.
    seed
        Seeds weights, order and augmentation.

    Returns
    -------
    dict
        What ``metrics.json`` holds.
    """
    import torch

    from .optimise import Optimiser
    from .vit import FASHION, ViT, save_checkpoint

    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)

    def tensors(images: np.ndarray, labels: np.ndarray) -> "tuple[torch.Tensor, torch.Tensor]":
        return torch.from_numpy(images.astype(np.float32) / 255)[:, None], torch.from_numpy(labels)

    whole, test = load(data, "train"), load(data, "test")
    if not 0 < validation < len(whole):
        raise InputError(f"validation must be 1 to {len(whole) - 1}, not {validation}")
    images, labels = tensors(whole.images[:-validation], whole.labels[:-validation])
    val_images, val_labels = tensors(whole.images[-validation:], whole.labels[-validation:])
    if limit is not None:
        images, labels = images[:limit], labels[:limit]
    if len(labels) < batch:
        raise InputError(f"batch must be at most the {len(labels)} training images, not {batch}")

    model = ViT(FASHION)
    parameters = sum(p.numel() for p in model.parameters())
    loss_function = torch.nn.CrossEntropyLoss(label_smoothing=0.05)
    steps_per_epoch = len(labels) // batch
    optimiser = Optimiser(
        model, lambda n: "token" not in n and "pos" not in n,
        learning_rate=learning_rate, epochs=epochs, steps_per_epoch=steps_per_epoch,
    )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with open(out / "train_log.csv", "w", newline="") as file:
        log = csv.writer(file, lineterminator="\n")
        log.writerow(["epoch", "learning_rate", "train_loss", "train_top1", "validation_top1", "seconds"])
        for epoch in range(1, epochs + 1):
            progress = Progress(f"epoch {epoch}/{epochs}", steps_per_epoch)
            order = torch.randperm(len(labels), generator=generator)
            loss_sum = right = 0.0
            for step in range(steps_per_epoch):
                index = order[step * batch : (step + 1) * batch]
                logits = model(_augment(images[index], generator))
                loss = loss_function(logits, labels[index])
                optimiser.step(loss)
                loss_sum += loss.item()
                right += int((logits.argmax(1) == labels[index]).sum())
                progress.update(step + 1, f"loss {loss_sum / (step + 1):.3f}")
            row = [
                epoch,
                f"{optimiser.learning_rate:.6f}",
                f"{loss_sum / steps_per_epoch:.4f}",
                f"{right / (steps_per_epoch * batch):.4f}",
                f"{_top1(model, val_images, val_labels):.4f}",
                f"{time.monotonic() - start:.0f}",
            ]
            log.writerow(row)
            file.flush()
            print(
                f"epoch {epoch}/{epochs}: loss {row[2]}, top-1 {row[3]} training, {row[4]} validation, "
                f"{row[5]} s",
                file=sys.stderr,
            )
            save_checkpoint(model, str(out / "checkpoint.pt"))
    metrics: dict[str, Any] = {
        "model": "fashion_vit",
        "dataset": "Fashion-MNIST",
        "parameters": parameters,
        "seed": seed,
        "epochs": epochs,
        "batch": batch,
        "learning_rate": learning_rate,
        "training_images": len(labels),
        "training_seconds": round(time.monotonic() - start),
        "torch": torch.__version__.split("+")[0],
        "validation_top1": _top1(model, val_images, val_labels),
        "torch_top1": _top1(model, *tensors(test.images, test.labels)),
        "torch_images": len(test),
    }
    write_json(out / "metrics.json", metrics)
    return metrics


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m moevit.models.train",
        description="Train the small vision transformer on Fashion-MNIST; needs moevit[train].",
    )
    add_data_argument(parser)
    parser.add_argument(
        "-o", "--output", required=True, type=Path, metavar="DIR",
        help="folder for checkpoint.pt, train_log.csv and metrics.json",
    )  # fmt: skip
    parser.add_argument("--epochs", type=int, default=16, help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=64, help="images per step, default: %(default)s")
    parser.add_argument("--learning-rate", type=float, default=1.5e-3, help="peak, default: %(default)s")
    parser.add_argument(
        "--validation", type=int, default=2000, help="training images held out, default: %(default)s"
    )
    parser.add_argument("--limit", type=int, help="use only so many training images, to try the command out")
    parser.add_argument("--threads", type=int, help="threads for torch, default: all cores")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    args = parser.parse_args(argv)
    for name in ("epochs", "batch", "limit", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise InputError(f"--{name} must be at least 1, not {value}")
    require("torch", TRAIN_EXTRA)
    metrics = train(
        args.data, args.output, epochs=args.epochs, batch=args.batch, learning_rate=args.learning_rate,
        validation=args.validation, limit=args.limit, threads=args.threads, seed=args.seed,
    )  # fmt: skip
    print(
        f"{args.output / 'checkpoint.pt'}: top-1 {metrics['torch_top1']:.4f} "
        f"on {metrics['torch_images']} test images"
    )
    return 0


if __name__ == "__main__":
    main_wrapper(main)
