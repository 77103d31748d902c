"""Train the shipped M³ViT on scenes of Fashion-MNIST items, both tasks together (needs the train extra).

Every epoch composes new scenes. Of each batch the first scenes teach segmentation and the others depth, each
through its own gates. The seed fixes scenes, order, noise and initial weights; the figures still depend a
little on torch's version and the number of threads, because sums are then taken in another order.
"""

import argparse
import csv
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moevit.errors import InputError

from . import scenes
from ._cli import TRAIN_EXTRA, Progress, add_data_argument, main_wrapper, require, write_json

if TYPE_CHECKING:
    from .m3vit import M3ViT

__all__ = ["BALANCE_WEIGHT", "main", "measure", "train"]

#: Weight of the load-balancing loss, as in M³ViT.
BALANCE_WEIGHT = 0.01

_DEPTH_SHARE = 3  # one scene of this many teaches depth
_VALIDATION_SEED = 1000


def measure(model: "M3ViT", data: scenes.SceneSet) -> tuple[float, float]:
    """Mean IoU of the segmentation and RMSE of the depth in metres, in evaluation mode."""
    import torch

    model.eval()
    counts = np.zeros((len(scenes.CLASSES),) * 2, np.int64)
    depths = []
    with torch.inference_mode():
        for start in range(0, len(data), 128):
            part = slice(start, start + 128)
            image = torch.from_numpy(data.images[part].astype(np.float32) / 255)
            counts += scenes.confusion(model(image, "seg").argmax(1).numpy(), data.seg[part])
            depths.append(model(image, "depth")[:, 0].numpy())
    model.train()
    return scenes.mean_iou(counts), scenes.rmse(np.concatenate(depths), data.depth)


def train(
    data: Path,
    out: Path,
    *,
    epochs: int = 30,
    scenes_per_epoch: int = 8192,
    batch: int = 48,
    learning_rate: float = 1.5e-3,
    validation: int = 512,
    test: int = 2048,
    threads: int | None = None,
    seed: int = 1,
) -> dict[str, Any]:
    """Train `SCENE` and write ``checkpoint.pt``, ``train_log.csv`` and ``metrics.json`` to `out`.

    The scenes that are watched in the log consist of training images that are held out; the test images are
    used once, at the end.

    Parameters
    ----------
    data
        Folder of the IDX files.
    out
        Folder for the results; made if missing.
    epochs, scenes_per_epoch, batch, learning_rate
        The schedule: AdamW, one epoch of linear warm-up, then a cosine to zero.
    validation, test
        Number of scenes to measure with after each epoch, and at the end.
    threads
        Threads for torch; its default otherwise.
    seed
        Seeds weights, scenes and noise.

    Returns
    -------
    dict
        What ``metrics.json`` holds.
    """
    import torch
    from torch.nn import functional as F

    from .m3vit import SCENE, M3ViT, save_checkpoint
    from .optimise import Optimiser

    if scenes_per_epoch < batch:
        raise InputError(f"batch must be at most the {scenes_per_epoch} scenes of an epoch, not {batch}")
    if batch < _DEPTH_SHARE:
        raise InputError(f"batch must be at least {_DEPTH_SHARE}, not {batch}")
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(seed)
    source = scenes.items(data, "train")
    watched = scenes.compose(scenes.items(data, "validation"), validation, _VALIDATION_SEED)

    model = M3ViT(SCENE)
    torch.nn.init.constant_(model.decoders["depth"].bias, float(watched.depth.mean()))
    parameters = sum(p.numel() for p in model.parameters())
    steps_per_epoch = scenes_per_epoch // batch
    for_seg = batch - batch // _DEPTH_SHARE
    optimiser = Optimiser(
        model, lambda n: "embed." not in n and "bias" not in n,
        learning_rate=learning_rate, epochs=epochs, steps_per_epoch=steps_per_epoch,
    )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with open(out / "train_log.csv", "w", newline="") as file:
        log = csv.writer(file, lineterminator="\n")
        log.writerow(
            ["epoch", "learning_rate", "seg_loss", "depth_loss", "balance_loss", "validation_miou",
             "validation_depth_rmse_m", "seconds"]
        )  # fmt: skip
        for epoch in range(1, epochs + 1):
            progress = Progress(f"epoch {epoch}/{epochs}", steps_per_epoch)
            fresh = scenes.compose(source, steps_per_epoch * batch, (seed, epoch))
            sums = np.zeros(3)
            for step in range(steps_per_epoch):
                one = slice(step * batch, step * batch + for_seg)
                two = slice(step * batch + for_seg, (step + 1) * batch)
                image = torch.from_numpy(fresh.images[one.start : two.stop].astype(np.float32) / 255)
                seg = model(image[:for_seg], "seg")
                seg_loss = F.cross_entropy(seg, torch.from_numpy(fresh.seg[one].astype(np.int64)))
                balance = model.balance
                depth = model(image[for_seg:], "depth")
                depth_loss = F.mse_loss(depth[:, 0], torch.from_numpy(fresh.depth[two]))
                balance = balance + model.balance
                loss = seg_loss + depth_loss + BALANCE_WEIGHT * balance
                optimiser.step(loss)
                sums += (seg_loss.item(), depth_loss.item(), balance.item())
                progress.update(step + 1, f"loss {sums[:2].sum() / (step + 1):.3f}")
            miou, rmse = measure(model, watched)
            row = [
                epoch,
                f"{optimiser.learning_rate:.6f}",
                *(f"{value:.4f}" for value in sums / steps_per_epoch),
                f"{miou:.4f}",
                f"{rmse:.4f}",
                f"{time.monotonic() - start:.0f}",
            ]
            log.writerow(row)
            file.flush()
            print(
                f"epoch {epoch}/{epochs}: loss {row[2]} seg, {row[3]} depth, {row[4]} balance; validation "
                f"mIoU {row[5]}, depth RMSE {row[6]} m; {row[7]} s",
                file=sys.stderr,
            )
            save_checkpoint(model, str(out / "checkpoint.pt"))
    seconds = round(time.monotonic() - start)
    miou, rmse = measure(model, watched)
    torch_miou, torch_rmse = measure(
        model, scenes.compose(scenes.items(data, "test"), test, scenes.TEST_SEED)
    )
    metrics: dict[str, Any] = {
        "model": "m3vit_scene",
        "dataset": "scenes of Fashion-MNIST items",
        "parameters": parameters,
        "seed": seed,
        "epochs": epochs,
        "scenes_per_epoch": steps_per_epoch * batch,
        "batch": batch,
        "learning_rate": learning_rate,
        "training_seconds": seconds,
        "torch": torch.__version__.split("+")[0],
        "validation_miou": miou,
        "validation_depth_rmse_m": rmse,
        "torch_miou": torch_miou,
        "torch_depth_rmse_m": torch_rmse,
        "torch_scenes": test,
    }
    write_json(out / "metrics.json", metrics)
    return metrics


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m moevit.models.m3vit_train",
        description="Train the small two-task M³ViT on scenes of Fashion-MNIST items; needs moevit[train].",
    )
    add_data_argument(parser)
    parser.add_argument(
        "-o", "--output", required=True, type=Path, metavar="DIR",
        help="folder for checkpoint.pt, train_log.csv and metrics.json",
    )  # fmt: skip
    parser.add_argument("--epochs", type=int, default=30, help="default: %(default)s")
    parser.add_argument("--scenes", type=int, default=8192, help="scenes per epoch, default: %(default)s")
    parser.add_argument("--batch", type=int, default=48, help="scenes per step, default: %(default)s")
    parser.add_argument("--learning-rate", type=float, default=1.5e-3, help="peak, default: %(default)s")
    parser.add_argument("--validation", type=int, default=512, help="scenes to watch, default: %(default)s")
    parser.add_argument("--test", type=int, default=2048, help="scenes at the end, default: %(default)s")
    parser.add_argument("--threads", type=int, help="threads for torch, default: all cores")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    args = parser.parse_args(argv)
    for name in ("epochs", "scenes", "batch", "validation", "test", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise InputError(f"--{name} must be at least 1, not {value}")
    if args.seed < 0:
        raise InputError(f"--seed must be at least 0, not {args.seed}")
    require("torch", TRAIN_EXTRA)
    metrics = train(
        args.data, args.output, epochs=args.epochs, scenes_per_epoch=args.scenes, batch=args.batch,
        learning_rate=args.learning_rate, validation=args.validation, test=args.test, threads=args.threads,
        seed=args.seed,
    )  # fmt: skip
    print(
        f"{args.output / 'checkpoint.pt'}: mIoU {metrics['torch_miou']:.4f}, depth RMSE "
        f"{metrics['torch_depth_rmse_m']:.4f} m on {metrics['torch_scenes']} test scenes"
    )
    return 0


if __name__ == "__main__":
    main_wrapper(main)
