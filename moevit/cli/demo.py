"""`make demo`: the shipped model, from ONNX to the simulated Verilog, on real test images.

Compiles the model, runs all committed test images on the instruction-level simulator and some of them on the
verilated machine with every tensor compared, and shows what came out beside onnxruntime's answers. Run it as
``python -m moevit.cli.demo``.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from numpy.typing import NDArray

from moevit.cli import listing
from moevit.cli.output import Output, json_command
from moevit.errors import MismatchError

if TYPE_CHECKING:
    from moevit.compiler.driver import Compiled
    from moevit.program import Program
    from moevit.sim.result import Result

DEFAULT_IMAGES = 8  #: that run on the rtl back-end
MAX_LOSS = 0.02  #: of top-1 against float on the committed images; three times their sampling error


@dataclass(frozen=True)
class Prediction:
    """One image: its label, and what float and integer arithmetic take it for, with their probabilities."""

    image: int
    label: str
    float_class: str
    float_probability: float
    int8_class: str
    int8_probability: float
    cycles: int

    @property
    def right(self) -> bool:
        return self.int8_class == self.label


@json_command(name="demo")
@click.option("--config", "config_name", default="tiny", show_default=True, metavar="NAME|FILE.json")
@click.option(
    "--images", default=DEFAULT_IMAGES, show_default=True, type=click.IntRange(min=1),
    help="Images that run on the rtl back-end.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Images of the isa back-end; all without it.")
@click.option(
    "-o", "--output", "folder", default=Path("build/demo"), show_default=True, metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False), help="Where the container and the plot go.",
)  # fmt: skip
def command(
    output: Output, config_name: str, images: int, limit: int | None, folder: Path
) -> dict[str, Any]:
    """Compile the shipped model, run real images on both simulators, compare them, and draw a plot."""
    from moevit import container
    from moevit.compiler.driver import compile_model
    from moevit.config import get_config
    from moevit.models import fashion_vit_path
    from moevit.models.evaluate import logits
    from moevit.models.subset import load_subset
    from moevit.sim import verilate
    from moevit.sim.inputs import read_inputs
    from moevit.sim.simulate import simulate

    started = time.perf_counter()
    config = get_config(config_name)
    folder.mkdir(parents=True, exist_ok=True)
    model, pictures = fashion_vit_path(), fashion_vit_path("test_images.npz")
    compiled = compile_model(
        {"main": model},
        config,
        lambda task, shapes: read_inputs(shapes, [fashion_vit_path("calib_images.npz")]).floats(),
    )
    program = compiled.program
    target = folder / f"fashion_{config.name}.moevit"
    container.save(program, target)
    _say_model(output, compiled, model.name)

    subset = load_subset(pictures)
    (task,) = program.tasks
    inputs = read_inputs({x.name: x.shape for x in task.inputs}, [pictures])
    count = len(inputs) if limit is None else min(limit, len(inputs))
    expected = logits(model, subset.images[:count])
    with output.progress("isa", count) as advance:
        isa = simulate(program, inputs, backend="isa", limit=count, progress=advance)
    accuracy = _accuracy(isa, expected, subset.labels[:count])
    _say_accuracy(output, isa, accuracy)
    if accuracy["top1_int8"] < accuracy["top1_float"] - MAX_LOSS:
        output.fail(f"integer arithmetic loses more than {100 * MAX_LOSS:.0f} points of accuracy")

    verilate.build(config, announce=output.note)
    images = min(images, len(inputs))
    with output.progress("rtl", images) as advance:
        rtl = simulate(program, inputs, backend="rtl", check=True, limit=images, progress=advance)
    _compare(isa, rtl)

    predictions = _predictions(subset.labels, logits(model, subset.images[:images]), rtl)
    _say_predictions(output, predictions, rtl)
    _say_layers(output, rtl, listing.layers(program, task))
    _say_stages(output, rtl)
    plot = folder / "report.png"
    draw(plot, program, rtl, predictions, subset.images, accuracy)
    seconds = time.perf_counter() - started
    output.say(f"Plot: {plot}    Container: {target}    ({seconds:.0f} s)")
    return {
        "accuracy": accuracy,
        "predictions": [asdict(p) for p in predictions],
        "isa": isa.as_dict(),
        "rtl": rtl.as_dict(),
        "plot": plot,
        "container": target,
        "wall_s": round(seconds, 3),
    }


def _only(outputs: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    (values,) = outputs.values()
    return values


def _accuracy(isa: "Result", expected: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, float]:
    """Top-1 of both, on the same images."""
    got, want = _only(isa.outputs).argmax(1), expected.argmax(1)
    return {
        "images": len(labels),
        "top1_float": float((want == labels).mean()),
        "top1_int8": float((got == labels).mean()),
        "top1_agreement": float((got == want).mean()),
    }


def _compare(isa: "Result", rtl: "Result") -> None:
    """Hold the outputs of both runs to each other; within the rtl run all tensors were compared already."""
    mine, want = _only(rtl.outputs), _only(isa.outputs)[: rtl.images]
    for index in np.argwhere(mine[: len(want)] != want):
        image, *rest = index
        got, right = mine[tuple(index)], want[tuple(index)]
        raise MismatchError(tensor="logits", index=rest, got=got, want=right, where=f"rtl, image {image}")


def _softmax(x: NDArray[np.float32]) -> NDArray[np.float32]:
    e = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def _predictions(
    labels: NDArray[np.int64], expected: NDArray[np.float32], rtl: "Result"
) -> list[Prediction]:
    from moevit.models.fashion_mnist import CLASSES

    floats, integers = _softmax(expected), _softmax(_only(rtl.outputs))
    assert rtl.cycles is not None
    return [
        Prediction(
            image=i,
            label=CLASSES[labels[i]],
            float_class=CLASSES[floats[i].argmax()],
            float_probability=float(floats[i].max()),
            int8_class=CLASSES[integers[i].argmax()],
            int8_probability=float(integers[i].max()),
            cycles=cycles,
        )
        for i, cycles in enumerate(rtl.cycles)
    ]


# -- what is printed -----------------------------------------------------------------------------------------


def _say_model(output: Output, compiled: "Compiled", model: str) -> None:
    c = compiled.program.config
    output.say(f"{model}, a vision transformer trained on Fashion-MNIST, compiled for {c.name}:")
    output.say(
        f"  array {c.rows}×{c.columns}×{c.depth}, {c.macs_per_cycle} MAC/cycle; {compiled.instructions} "
        f"instructions for {compiled.accelerated_macs / 1e6:.2f} M multiply-accumulates"
    )
    output.say()


def _say_accuracy(output: Output, isa: "Result", accuracy: dict[str, float]) -> None:
    output.say(
        f"isa, all {isa.images} test images in {isa.wall_s:.1f} s ({isa.images / isa.wall_s:.0f} images/s): "
        f"{100 * accuracy['top1_int8']:.1f} % right;"
    )
    output.say(
        f"  onnxruntime in float: {100 * accuracy['top1_float']:.1f} %; "
        f"both say the same on {100 * accuracy['top1_agreement']:.1f} % of the images."
    )
    output.say()


def _say_predictions(output: Output, predictions: Sequence[Prediction], rtl: "Result") -> None:
    output.say(f"rtl, {rtl.images} of them on the Verilog, DRAM with {rtl.dram}:")
    output.say(f"  {'image':>5}  {'label':13}{'onnxruntime, float':22}{'rtl, int8':22}{'cycles':>8}")
    for p in predictions:
        left = f"{p.float_class} {100 * p.float_probability:.0f} %"
        right = f"{p.int8_class} {100 * p.int8_probability:.0f} %"
        output.say(f"  {p.image:5}  {p.label:13}{left:22}{right:22}{p.cycles:8,}")
    output.say(
        f"  Bit-exact: rtl, isa and reference agree in all {rtl.checked_values:,} compared values "
        "of outputs and intermediate tensors."
    )
    output.say()


def _say_layers(output: Output, rtl: "Result", entries: Sequence[listing.LayerEntry]) -> None:
    assert rtl.layers is not None
    assert rtl.cycles is not None
    total = sum(rtl.cycles) / len(rtl.cycles)
    output.say("Cycles by layer. They overlap: this is what each adds. Ideal: the array never waits.")
    output.say(f"  {'layer':32}{'':22}{'cycles':>9}{'share':>8}{'ideal':>9}")
    by_name = {entry.name: entry for entry in entries}
    for layer in rtl.layers:
        entry = by_name.get(layer.name)
        does = "" if entry is None else entry.role
        ideal = f"{entry.ideal_cycles:,}" if entry is not None and entry.ideal_cycles else ""
        share = f"{100 * layer.cycles / total:.1f} %"
        output.say(f"  {layer.name:32}{does:22}{layer.cycles:9,.0f}{share:>8}{ideal:>9}")
    output.say(f"  {'total':54}{total:9,.0f}{'':8}{sum(e.ideal_cycles for e in entries):9,}")
    assert rtl.mac_utilisation is not None
    output.say(
        f"  {rtl.latency_ms:.3f} ms at {rtl.clock_mhz:g} MHz; the multipliers do useful work in "
        f"{100 * rtl.mac_utilisation:.1f} % of the cycles (mac_utilisation)."
    )
    output.say()


def _say_stages(output: Output, rtl: "Result") -> None:
    output.say("Where each stage's cycles go:")
    for stage, causes, total in _stages(rtl):
        parts = [f"{name} {100 * cycles / total:.1f} %" for name, cycles in causes.items()]
        output.say(f"  {stage:8}{', '.join(parts)}")
    output.say()


def _stages(rtl: "Result") -> list[tuple[str, dict[str, float], float]]:
    """Each stage: its name, cycles by cause (busy first, idle last), and all cycles."""
    assert rtl.stages is not None
    return [(stage, causes, sum(causes.values())) for stage, causes in rtl.stages.items()]


# -- the plot ------------------------------------------------------------------------------------------------

_RIGHT, _WRONG, _INK, _FAINT = "#2a7f62", "#c0392b", "#333333", "#d9dde1"
_CAUSES = {
    "busy": "#2f6db3", "dependency": "#e08e45", "ring": "#8c6bb1", "dram": "#c0504d", "tile": "#f2c14e",
    "norm": "#7fb069", "scores": "#4fb0ae", "drain": "#e3a5c7", "post": "#a0764f", "idle": "#eceff1",
}  # fmt: skip


def draw(
    path: Path,
    program: "Program",
    rtl: "Result",
    predictions: Sequence[Prediction],
    pictures: NDArray[np.uint8],
    accuracy: dict[str, float],
) -> None:
    """Draw images with predictions, cycles by layer, and the stages' time, into a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    assert rtl.cycles is not None
    assert rtl.mac_utilisation is not None
    shown = predictions[:8]
    figure = Figure(figsize=(13, 9.6), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    outer = figure.add_gridspec(
        2, 1, height_ratios=(1, 3.4), left=0.035, right=0.975, top=0.885, bottom=0.085, hspace=0.22
    )
    c = program.config
    figure.text(0.035, 0.962, "moevit demo", fontsize=17, weight="bold", color=_INK)
    figure.text(
        0.035, 0.928,
        f"ViT on Fashion-MNIST, {c.name}: {c.rows}×{c.columns}×{c.depth} array.   "
        f"{sum(rtl.cycles) / len(rtl.cycles):,.0f} cycles per image = {rtl.latency_ms:.2f} ms at "
        f"{c.clock_mhz:g} MHz, MAC utilisation {100 * rtl.mac_utilisation:.1f} %.   "
        f"Top-1 int8 {100 * accuracy['top1_int8']:.1f} %, float {100 * accuracy['top1_float']:.1f} % "
        f"on {accuracy['images']:,} images.",
        fontsize=10.5, color=_INK,
    )  # fmt: skip
    row = outer[0].subgridspec(1, max(len(shown), 4), wspace=0.12)
    for i, p in enumerate(shown):
        _draw_image(figure.add_subplot(row[i]), pictures[p.image], p)
    lower = outer[1].subgridspec(1, 2, width_ratios=(1.15, 1), wspace=0.08)
    entries = {entry.name: entry for entry in listing.layers(program, program.tasks[0])}
    left = lower[0].subgridspec(1, 2, width_ratios=(0.42, 1), wspace=0)
    _draw_layers(figure.add_subplot(left[1]), rtl, entries)
    right = lower[1].subgridspec(1, 2, width_ratios=(0.08, 1), wspace=0)
    _draw_stages(figure.add_subplot(right[1]), rtl)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, format="png")
    temporary.replace(path)


def _draw_image(axes: Any, picture: NDArray[np.uint8], p: Prediction) -> None:
    axes.imshow(picture, cmap="gray_r", vmin=0, vmax=255)
    axes.set_xticks([])
    axes.set_yticks([])
    colour = _RIGHT if p.right else _WRONG
    for spine in axes.spines.values():
        spine.set(color=colour, linewidth=2)
    axes.set_title(p.label, fontsize=10, color=_INK, pad=5)
    lines = (
        f"rtl  {p.int8_class} {100 * p.int8_probability:.0f} %\n"
        f"float  {p.float_class} {100 * p.float_probability:.0f} %"
    )
    axes.set_xlabel(lines, fontsize=8.5, color=colour, labelpad=5, linespacing=1.35)


def _plain(axes: Any) -> None:
    """Only the axis line that is read."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_FAINT)
    axes.tick_params(axis="both", length=0, labelsize=9, colors=_INK)
    axes.set_axisbelow(True)
    axes.grid(axis="x", color=_FAINT, linewidth=0.7)


def _draw_layers(axes: Any, rtl: "Result", entries: dict[str, listing.LayerEntry]) -> None:
    assert rtl.layers is not None
    place = range(len(rtl.layers))
    names = [f"{entries[x.name].role}" if x.name in entries else x.name for x in rtl.layers]
    cycles = [x.cycles for x in rtl.layers]
    ideal = [entries[x.name].ideal_cycles if x.name in entries else 0 for x in rtl.layers]
    axes.barh(place, cycles, height=0.68, color=_CAUSES["busy"], label="cycles added")
    axes.barh(place, ideal, height=0.26, color="#0d2c54", label="ideal: the array never waits")
    for y, n in zip(place, cycles, strict=True):
        axes.text(n, y, f" {n:,.0f}", va="center", ha="left", fontsize=8, color=_INK)
    axes.set_yticks(list(place), names)
    axes.invert_yaxis()
    axes.margins(y=0.012)
    axes.set_xlim(0, max([*cycles, *ideal]) * 1.14)
    axes.xaxis.set_major_formatter(lambda value, position: f"{value:,.0f}")
    axes.set_title("Cycles by layer, in the order of execution", fontsize=11, loc="left", color=_INK)
    axes.legend(fontsize=8.5, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.045), ncols=2)
    _plain(axes)


def _draw_stages(axes: Any, rtl: "Result") -> None:
    stages = _stages(rtl)
    seen: dict[str, Any] = {}
    for y, (_, causes, total) in enumerate(stages):
        at = 0.0
        for name, cycles in causes.items():
            share = 100 * cycles / total if total else 0.0
            bar = axes.barh(y, share, left=at, height=0.55, color=_CAUSES.get(name, "#999999"))
            if share > 0.5:
                seen.setdefault(name, bar)
            if share >= max(6.0, 1.5 * len(name)):  # the name fits
                light = name in ("idle", "tile", "drain")
                axes.text(
                    at + share / 2, y, f"{name}\n{share:.0f} %", va="center", ha="center", fontsize=8.5,
                    color=_INK if light else "white", linespacing=1.25,
                )  # fmt: skip
            at += share
    axes.set_yticks(range(len(stages)), [name for name, _, _ in stages])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.xaxis.set_major_formatter(lambda value, position: f"{value:.0f} %")
    axes.set_title("What each stage does: busy, and why it waits", fontsize=11, loc="left", color=_INK)
    _plain(axes)
    axes.tick_params(axis="y", labelsize=10)
    order = [name for name in _CAUSES if name in seen]
    axes.legend(
        [seen[name] for name in order], order, fontsize=8.5, frameon=False, loc="upper center",
        bbox_to_anchor=(0.5, -0.045), ncols=5,
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the demo as the command line runs its commands, with the same exit statuses."""
    import sys

    from moevit.cli import LazyGroup

    class Demo(LazyGroup):
        """The one command."""

        def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
            return command

    group = Demo(name="moevit", callback=lambda: None)
    group.main(["demo", *(sys.argv[1:] if arguments is None else arguments)], prog_name="moevit")


if __name__ == "__main__":
    main()
