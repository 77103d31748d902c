"""Export a trained M³ViT to ONNX, one file per task (needs the train extra).

Every file has one input ``image`` (float32 ``[batch, channels, height, width]``, pixels in [0, 1]) and one
output that is named like its task (float32 ``[batch, channels of the task, height, width]``). What tasks
share, all but their gates and decoders, is stored as the same bytes in each file.
"""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from moevit.errors import InputError

from ._cli import TRAIN_EXTRA, main_wrapper, require
from .export import to_onnx

if TYPE_CHECKING:
    from .m3vit import M3ViT

__all__ = ["export", "main", "random_model"]


def random_model(name: str, seed: int) -> "M3ViT":
    """Make a model of a named configuration with random weights, in evaluation mode.

    LayerNorm's weights, biases and the embeddings are random too, so that none is left out of a comparison.

    Raises
    ------
    InputError
        There is no such configuration.
    """
    import torch

    from .m3vit import CONFIGS, M3ViT

    if name not in CONFIGS:
        raise InputError(f"--random must be one of {', '.join(CONFIGS)}, not {name!r}")
    torch.manual_seed(seed)
    model = M3ViT(CONFIGS[name])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1 or 1 in parameter.shape:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def export(
    model: "M3ViT", out: Path, *, tasks: tuple[str, ...] = (), form: str = "stacked", opset: int = 20
) -> list[Path]:
    """Write ``<task>.onnx`` for each of `tasks`, or for all, into `out`.

    Parameters
    ----------
    model
        The network.
    out
        Folder; made if missing.
    tasks
        Names of tasks; all of the model's if empty.
    form
        How experts are written: ``stacked`` or ``unrolled``.
    opset
        ONNX operator set.

    Raises
    ------
    InputError
        There is no such task, or torch cannot export it so.
    """
    import torch

    from .m3vit import TaskModel

    config = model.config
    for task in tasks:
        if task not in config.task_names:
            raise InputError(f"task must be one of {', '.join(config.task_names)}, not {task!r}")
    image = torch.zeros(2, config.channels, config.image_height, config.image_width)
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for task in tasks or config.task_names:
        proto = to_onnx(TaskModel(model, task, form=form), image, opset=opset, output_name=task)
        path = out / f"{task}.onnx"
        temporary = path.with_name(path.name + ".part")
        temporary.write_bytes(proto.SerializeToString(deterministic=True))
        os.replace(temporary, path)
        paths.append(path)
    return paths


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m moevit.models.m3vit_export",
        description="Export a checkpoint of moevit.models.m3vit_train, or a named configuration with random "
        "weights, to one ONNX file per task; needs moevit[train].",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "checkpoint", type=Path, nargs="?", metavar="CHECKPOINT",
        help="checkpoint.pt of moevit.models.m3vit_train",
    )  # fmt: skip
    source.add_argument(
        "--random", metavar="NAME",
        help="a configuration: scene, or the published tiny, small_nyud, small_pascal, base_nyud, base_pascal",
    )  # fmt: skip
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="DIR")
    parser.add_argument("--task", action="append", default=[], help="only this task; may be repeated")
    parser.add_argument(
        "--form", choices=("stacked", "unrolled"), default="stacked",
        help="the experts of a layer as one product of stacked weights, or one by one; default: %(default)s",
    )  # fmt: skip
    parser.add_argument("--opset", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="of --random; default: %(default)s")
    args = parser.parse_args(argv)
    require("torch", TRAIN_EXTRA)
    require("onnxscript", TRAIN_EXTRA)
    from .m3vit import load_checkpoint

    model = random_model(args.random, args.seed) if args.random else load_checkpoint(str(args.checkpoint))
    for path in export(model, args.output, tasks=tuple(args.task), form=args.form, opset=args.opset):
        print(f"{path}: {path.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    main_wrapper(main)
