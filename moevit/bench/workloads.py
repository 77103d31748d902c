"""The standing workloads: which networks, on which configurations, and what they are to reach."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moevit.bench.gates import balance
from moevit.bench.images import smooth_images
from moevit.bench.vit import Shape, build
from moevit.compiler.ir import Graph
from moevit.errors import InputError

SEED = 1  #: of all weights, pictures and gates
CALIBRATION_IMAGES = 4
GATE_IMAGES = 16


@dataclass(frozen=True)
class Goal:
    """What a workload is to reach on a configuration: at most so many cycles, better ``stretch``; at least so much
    useful work of the multipliers."""

    cycles: int
    stretch: int
    utilisation: float


@dataclass(frozen=True)
class Model:
    """What is compiled: graphs by task, which share weights, with inputs to calibrate and to run on, [B, ...]."""

    graphs: Mapping[str, Graph]
    calibration: Mapping[str, NDArray]
    inputs: Mapping[str, NDArray]


@dataclass(frozen=True)
class Workload:
    """One task of a model, on the configurations that it is measured on.

    model : makes the model; workloads with the same one are tasks of it
    goals : by configuration
    """

    name: str
    model: Callable[[], Model]
    task: str
    configs: tuple[str, ...]
    goals: Mapping[str, Goal]


# M³ViT tiny for Cityscapes; its seg has a decoder of 19 classes, its depth of one.
_M3VIT = Shape(
    image=(3, 128, 256), patch=16, dim=192, depth=12, heads=3, hidden=768, outputs=0, class_only=False,
    moe_layers=(1, 3, 5, 7, 9, 11), experts=16, expert_hidden=384, top_k=2,
)  # fmt: skip
SHAPES = {
    "m3vit-tiny-seg": replace(_M3VIT, outputs=19 * 16 * 16),
    "m3vit-tiny-depth": replace(_M3VIT, outputs=16 * 16),
    "deit-ti": Shape(image=(3, 224, 224), patch=16, dim=192, depth=12, heads=3, hidden=768, outputs=1000),
    "deit-s": Shape(image=(3, 224, 224), patch=16, dim=384, depth=12, heads=6, hidden=1536, outputs=1000),
}


def random_model(**shapes: Shape) -> Model:
    """A model with random weights: a task for each shape, which differ in gates and the last layer only."""
    image = next(iter(shapes.values())).image

    def pictures(count: int, seed: int) -> dict[str, NDArray]:
        return {"image": smooth_images(image, count, seed).astype(np.float32) / 255}

    graphs = {}
    for number, (task, shape) in enumerate(shapes.items()):
        graph = build(task, shape, SEED)
        if shape.moe_layers:
            graph = balance(graph, pictures(GATE_IMAGES, SEED), SEED + number)
        graphs[task] = graph
    return Model(graphs, pictures(CALIBRATION_IMAGES, SEED + 1), pictures(1, SEED + 2))


def m3vit_tiny() -> Model:
    """Both tasks in one container, as they are used."""
    return random_model(seg=SHAPES["m3vit-tiny-seg"], depth=SHAPES["m3vit-tiny-depth"])


def deit_ti() -> Model:
    """DeiT-Ti."""
    return random_model(main=SHAPES["deit-ti"])


def deit_s() -> Model:
    """DeiT-S."""
    return random_model(main=SHAPES["deit-s"])


def shipped_m3vit() -> Model:
    """The trained two-task model of the repository and its first test scene."""
    from moevit.compiler.frontend.load import load
    from moevit.models.scenes import m3vit_path

    def scenes(name: str, count: int) -> dict[str, NDArray]:
        with np.load(m3vit_path(name)) as data:
            return {"image": data["images"][:count].astype(np.float32) / 255}

    graphs = {task: load(m3vit_path(f"{task}.onnx")) for task in ("seg", "depth")}
    return Model(graphs, scenes("calib_scenes.npz", 64), scenes("test_scenes.npz", 1))


_M3VIT_GOAL = {"zcu104": Goal(540_000, 460_000, 0.70)}

WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        Workload("m3vit-tiny-seg", m3vit_tiny, "seg", ("zcu104",), _M3VIT_GOAL),
        Workload("m3vit-tiny-depth", m3vit_tiny, "depth", ("zcu104",), _M3VIT_GOAL),
        Workload("deit-ti", deit_ti, "main", ("zcu104",), {"zcu104": Goal(740_000, 660_000, 0.82)}),
        Workload("deit-s", deit_s, "main", ("zcu104",), {"zcu104": Goal(2_650_000, 2_400_000, 0.85)}),
        Workload("m3vit-scene-seg", shipped_m3vit, "seg", ("tiny", "zcu104"), {}),
        Workload("m3vit-scene-depth", shipped_m3vit, "depth", ("tiny", "zcu104"), {}),
    )
}


def choose(names: str | None) -> tuple[Workload, ...]:
    """The workloads of a comma-separated list, in the usual order; all when None. Raises InputError for others."""
    if names is None:
        return tuple(WORKLOADS.values())
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    mend = f"choose from {', '.join(WORKLOADS)}"
    if not wanted:
        raise InputError("names no workload", where="--only", mend=mend)
    for name in wanted:
        if name not in WORKLOADS:
            raise InputError(f"no workload {name!r}", where="--only", mend=mend)
    return tuple(workload for name, workload in WORKLOADS.items() if name in wanted)
