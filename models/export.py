"""Export a trained checkpoint to ONNX (needs the train extra)."""

import argparse
import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moevit.errors import InputError

from ._cli import TRAIN_EXTRA, main_wrapper, require

if TYPE_CHECKING:
    import onnx
    import torch

__all__ = ["EXPORTERS", "export", "main", "to_onnx"]

EXPORTERS = ("dynamo", "torchscript")


def to_onnx(
    model: "torch.nn.Module",
    image: "torch.Tensor",
    *,
    exporter: str = "dynamo",
    opset: int = 20,
    input_name: str = "image",
    output_name: str = "logits",
    dynamic_batch: bool = True,
    constant_folding: bool = True,
) -> "onnx.ModelProto":
    """Export a module of one image input and one output.

    Parameters
    ----------
    model
        The module, in evaluation mode.
    image
        An example input; its batch must be at least 2 for the dynamo exporter with a dynamic batch.
    exporter
        ``dynamo`` (``torch.export``) or ``torchscript`` (tracing).
    opset
        ONNX operator set.
    input_name, output_name
        Names of the graph's input and output.
    dynamic_batch
        Name the first axis ``batch`` instead of fixing it at the example's.
    constant_folding
        Whether the TorchScript exporter folds constants.

    Returns
    -------
    onnx.ModelProto
        Weights inside; without the stack traces, with the machine's paths, that torch stores in the nodes.

    Raises
    ------
    InputError
        Unknown exporter, or it did not produce the operator set asked for.
    """
    import onnx
    import torch

    if exporter not in EXPORTERS:
        raise InputError(f"exporter must be one of {', '.join(EXPORTERS)}, not {exporter!r}")
    with _quiet():
        if exporter == "dynamo":
            batch = torch.export.Dim("batch", min=1, max=1 << 16)
            program = torch.onnx.export(
                model, (image,), dynamo=True, opset_version=opset, verbose=False,
                input_names=[input_name], output_names=[output_name],
                dynamic_shapes=({0: batch},) if dynamic_batch else None,
            )  # fmt: skip
            proto: onnx.ModelProto = program.model_proto
        else:
            buffer = io.BytesIO()
            torch.onnx.export(
                model, (image,), buffer, dynamo=False, opset_version=opset, verbose=False,
                input_names=[input_name], output_names=[output_name],
                dynamic_axes={input_name: {0: "batch"}, output_name: {0: "batch"}} if dynamic_batch else None,
                do_constant_folding=constant_folding,
            )  # fmt: skip
            proto = onnx.load_from_string(buffer.getvalue())
    got = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    if got != opset:
        raise InputError(
            f"torch's {exporter} exporter gave opset {got} instead of {opset}", mend="choose another --opset"
        )
    _strip(proto)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def _strip(proto: "onnx.ModelProto") -> None:
    graph = proto.graph
    items: list[Any] = [*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer]
    for item in (proto, graph, *items):
        item.ClearField("doc_string")
        item.ClearField("metadata_props")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' deprecation notes and progress lines off the terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def export(checkpoint: Path, out: Path, *, exporter: str = "dynamo", opset: int = 20) -> None:
    """Write the model of `checkpoint` as `out`: input ``image``, output ``logits``, dynamic axis ``batch``.

    Raises
    ------
    ModelError
        The checkpoint is not one.
    InputError
        torch cannot export it so.
    """
    import torch

    from .vit import load_checkpoint

    model = load_checkpoint(str(checkpoint))
    config = model.config
    image = torch.zeros(2, config.channels, config.image_height, config.image_width)
    proto = to_onnx(model, image, exporter=exporter, opset=opset)
    temporary = out.with_name(out.name + ".part")
    temporary.write_bytes(proto.SerializeToString(deterministic=True))
    os.replace(temporary, out)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m moevit.models.export",
        description="Export a checkpoint of moevit.models.train to ONNX; needs moevit[train].",
    )
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="checkpoint.pt of moevit.models.train"
    )
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="FILE.onnx")
    parser.add_argument("--exporter", choices=EXPORTERS, default="dynamo", help="default: %(default)s")
    parser.add_argument("--opset", type=int, default=20, help="default: %(default)s")
    args = parser.parse_args(argv)
    require("torch", TRAIN_EXTRA)
    export(args.checkpoint, args.output, exporter=args.exporter, opset=args.opset)
    print(f"{args.output}: {args.output.stat().st_size} bytes, {args.exporter} exporter, opset {args.opset}")
    return 0


if __name__ == "__main__":
    main_wrapper(main)
