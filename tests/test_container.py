"""The container: round trip, determinism, and what a damaged or hostile file meets."""

import contextlib
import dataclasses
import hashlib
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from compile_helpers import SMALL, compiled
from mixture_program import MixtureProgram, Shape

from moevit import container
from moevit.config import CONFIGS
from moevit.errors import ContainerError
from moevit.program import Program


@pytest.fixture(scope="module")
def program() -> Program:
    return compiled(SMALL, "tiny").program


@pytest.fixture(scope="module")
def data(program: Program) -> bytes:
    return container.dumps(program)


def rebuilt(data: bytes, change) -> bytes:
    """The container with its header changed and its checksum made right again: a hostile file, not a damaged one."""
    header_bytes, image_bytes = struct.unpack_from("<IQ", data, 8)
    body = data[60:]
    header = json.loads(zlib.decompress(body[:header_bytes]))
    header = change(header) or header
    text = zlib.compress(json.dumps(header).encode())
    image = body[header_bytes:]
    digest = hashlib.sha256(text + image).digest()
    sizes = len(text), image_bytes, len(image) - image_bytes
    return struct.pack("<8sIQQ32s", container.MAGIC, *sizes, digest) + text + image


def test_round_trip(program: Program, data: bytes, tmp_path: Path) -> None:
    assert container.loads(data) == program
    container.save(program, tmp_path / "a.moevit")
    assert container.load(tmp_path / "a.moevit") == program
    assert [p.name for p in tmp_path.iterdir()] == ["a.moevit"]


def test_same_program_same_bytes(program: Program, data: bytes) -> None:
    assert container.dumps(container.loads(data)) == data


def test_every_truncation_is_refused(data: bytes) -> None:
    for n in [*range(80), len(data) // 2, len(data) - 1]:
        with pytest.raises(ContainerError):
            container.loads(data[:n])


def test_flipped_bytes_are_refused(data: bytes) -> None:
    rng = np.random.default_rng(0)
    for at in rng.integers(0, len(data), 200):
        broken = bytearray(data)
        broken[at] ^= 1 << int(rng.integers(8))
        with pytest.raises(ContainerError):
            container.loads(bytes(broken))


def _first_tensor(key: str, value):
    def change(header) -> None:
        header["tasks"][0]["tensors"][0][key] = value

    return change


def _first_task(key: str, value):
    def change(header) -> None:
        header["tasks"][0][key] = value

    return change


HOSTILE = {
    "tensor rows": _first_tensor("rows", 1 << 40),
    "tensor address": _first_tensor("addr", 1 << 30),
    "tensor stride": _first_tensor("stride", 1 << 40),
    "tensor dtype": _first_tensor("dtype", "object"),
    "tensor memory": _first_tensor("memory", "disk"),
    "entry": _first_task("entry", 64 * 10**9),
    "misaligned entry": _first_task("entry", 3),
    "instructions": _first_task("instructions", 10**12),
    "input bytes": _first_task("input_bytes", 1 << 50),
    "negative output bytes": _first_task("output_bytes", -1),
    "missing entry": lambda h: h["tasks"][0].pop("tensors") and None,
    "extra entry": lambda h: h["tasks"][0].update(code="import os"),
    "wrong type": _first_task("name", 7),
    "no task": lambda h: h.update(tasks=[]),
    "boolean for integer": _first_task("entry", True),
    "config": lambda h: h["config"].update(rows=3),
    "config of other hardware": lambda h: h["config"].update(operand_words=2048),
    "layer names": lambda h: h["tasks"][0]["layers"][0].update(inputs=["nothing"]),
    "layer instruction": lambda h: h["tasks"][0]["layers"][-1].update(instructions=[10**6]),
    "walk of unequal lengths": lambda h: h["tasks"][0]["outputs"][0].update(
        order=[{"first": 0, "extents": [2, 5], "strides": [1]}]
    ),
    "walk without end": lambda h: h["tasks"][0]["outputs"][0].update(
        order=[{"first": 0, "extents": [1 << 70], "strides": [0]}]
    ),
    "output order": lambda h: h["tasks"][0]["outputs"][0].update(
        order=[{"first": -1, "extents": [10], "strides": [1]}]
    ),
    "output shape": lambda h: h["tasks"][0]["outputs"][0].update(shape=[1 << 40]),
    "not an object": lambda h: [1, 2],
}


def _named(kind: str, name: str, **fields):
    """Changes a tensor (its name) or a layer (its kind, the first)."""

    def change(header) -> None:
        items = header["tasks"][0][kind]
        next(x for x in items if x["kind" if kind == "layers" else "name"] == name).update(fields)

    return change


def _names_another(kind: str, other: str):
    """A layer of a kind gets the instructions and streams of the first of another kind."""

    def change(header) -> None:
        layers = header["tasks"][0]["layers"]
        source = next(x for x in layers if x["kind"] == other)
        next(x for x in layers if x["kind"] == kind).update({k: source[k] for k in ("instructions", "streams")})

    return change


HOSTILE_EXPERTS = {
    "too many tokens": _named("tensors", "scores", addr=8190),
    "too many experts": _named("tensors", "scores", channels=65),
    "strided scores": _named("tensors", "scores", stride=1),
    "signed scores": _named("tensors", "scores", dtype="int8"),
    "scores elsewhere": _named("tensors", "scores", memory="activation"),
    "no such gate": _named("tensors", "hidden0.0", gate="nothing"),
    "a gate that is none": _named("tensors", "hidden0.0", gate="x"),
    "no such expert": _named("tensors", "hidden0.0", expert=5),
    "negative expert": _named("tensors", "hidden0.0", expert=-1),
    "an expert of no gate": _named("tensors", "x", expert=1),
    "rows of scores": _named("layers", "gather", input_row=1),
    "scattered rows": _named("layers", "scatter", output_row=1),
    "a gate's inputs": _named("layers", "route", inputs=["x", "x"]),
    "a gate's outputs": _named("layers", "route", outputs=["kept", "kept"]),
    "a gather's inputs": _named("layers", "gather", inputs=["kept"]),
    "a gather's scores": _named("layers", "gather", inputs=["kept", "x"]),
    "a scatter's outputs": _named("layers", "scatter", outputs=["out", "out", "out"]),
    "no streams": _named("layers", "scatter", streams=[]),
    "a gate that gathers": _names_another("route", "gather"),
    "a gather that scatters": _names_another("gather", "scatter"),
    "a scatter that is a gate": _names_another("scatter", "route"),
}


@pytest.mark.parametrize("name", HOSTILE_EXPERTS)
def test_hostile_experts_are_refused(name: str) -> None:
    mixture = MixtureProgram(CONFIGS["tiny"], Shape())
    data = container.dumps(mixture.program)
    assert container.loads(data) == mixture.program
    with pytest.raises(ContainerError):
        container.loads(rebuilt(data, HOSTILE_EXPERTS[name]))


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers_are_refused(data: bytes, name: str) -> None:
    with pytest.raises(ContainerError):
        container.loads(rebuilt(data, HOSTILE[name]))


def test_random_header_changes_raise_no_other_error(data: bytes) -> None:
    """Any integer in the header set to any value either loads or is a ContainerError."""
    rng = np.random.default_rng(1)

    def integers(node, path=()):
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, value in items:
            if type(value) is int:
                yield (*path, key)
            yield from integers(value, (*path, key))

    header_bytes = struct.unpack_from("<I", data, 8)[0]
    paths = list(integers(json.loads(zlib.decompress(data[60 : 60 + header_bytes]))))
    values = [-1, 0, 1, 63, 255, 1 << 16, 1 << 31, 1 << 63, 10**30]
    for _ in range(150):
        path, value = paths[rng.integers(len(paths))], values[rng.integers(len(values))]

        def change(header, path=path, value=value) -> None:
            for key in path[:-1]:
                header = header[key]
            header[path[-1]] = value

        with contextlib.suppress(ContainerError):
            container.loads(rebuilt(data, change))


@pytest.mark.parametrize(
    "packed",
    [
        zlib.compress(b"[" * 100_000),
        zlib.compress(b" " * (container.MAX_HEADER_BYTES + 1)),
        zlib.compress(b"{}")[:-1],
        zlib.compress(b"{}") + b"x",
        b"{}",
    ],
    ids=["nested", "a bomb", "truncated", "more behind it", "not deflated"],
)
def test_other_headers_are_refused(packed: bytes) -> None:
    digest = hashlib.sha256(packed).digest()
    with pytest.raises(ContainerError, match="header"):
        container.loads(struct.pack("<8sIQQ32s", container.MAGIC, len(packed), 0, 0, digest) + packed)


def test_missing_file_and_folder_are_clear(program: Program, tmp_path: Path) -> None:
    with pytest.raises(ContainerError, match=r"nothing\.moevit"):
        container.load(tmp_path / "nothing.moevit")
    with pytest.raises(ContainerError, match="no/such"):
        container.save(program, tmp_path / "no/such/folder.moevit")


def test_program_of_other_hardware_is_refused(program: Program) -> None:
    other = dataclasses.replace(program, config=dataclasses.replace(program.config, norm_words=128))
    with pytest.raises(ContainerError, match="another configuration"):
        container.loads(container.dumps(other))
