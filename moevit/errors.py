"""Every error that moevit raises on purpose.

`str()` of an error is one line that says what is wrong, where, and how to mend it; the command line prints it
and ends with the class's `exit_status`: 2 where the user can mend something, 1 where a check that was asked
for failed, 3 where all is written and a vendor's tool has to go on elsewhere.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar


class MoevitError(Exception):
    """Base of all of them.

    Parameters
    ----------
    what : str
        What is wrong, naming the offending value.
    where : str, optional
        The file, node, field or address it is wrong in; printed first.
    mend : str, optional
        What to do about it; printed last.
    """

    exit_status: ClassVar[int] = 2

    def __init__(self, what: str, *, where: str | None = None, mend: str | None = None):
        self.what = what
        self.where = where
        self.mend = mend
        text = what if where is None else f"{where}: {what}"
        super().__init__(_one_line(text if mend is None else f"{text}; {mend}"))

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints about this error, below the key `error`."""
        return {"type": type(self).__name__, "what": self.what, "where": self.where, "mend": self.mend}


def _one_line(text: str) -> str:
    """With what is no printable character escaped: names in a damaged file may hold anything."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class ConfigError(MoevitError):
    """A configuration is unknown, or holds a value that no accelerator can be built with."""


class ModelError(MoevitError):
    """A model file is missing, truncated or not valid ONNX."""


class InputError(MoevitError):
    """Input data has the wrong name, shape, type or content."""


class EncodingError(MoevitError):
    """An instruction, a register or a table entry holds a value that its field cannot."""


class AllocationError(MoevitError):
    """A program needs more of a memory than the configuration has.

    Parameters
    ----------
    what, where, mend : str
        As in the base class.
    nodes : sequence of str
        Names of the model's nodes that need it; empty where that is the program as a whole.
    """

    def __init__(self, what: str, *, where: str | None = None, mend: str | None = None, nodes: Sequence[str] = ()):
        self.nodes = tuple(nodes)
        super().__init__(what, where=where, mend=mend)


class AccuracyError(MoevitError):
    """A program's answers are not the model's: the machine's integers do not hold its values.

    Parameters
    ----------
    found : mapping
        What was found of each output: by task, output and figure.
    what, where, mend : str
        As in the base class.
    """

    def __init__(
        self, what: str, *, found: Mapping[str, Mapping[str, Mapping[str, float]]], where: str | None = None,
        mend: str | None = None,
    ):  # fmt: skip
        self.found = found
        super().__init__(what, where=where, mend=mend)

    def as_json(self) -> dict[str, Any]:
        """As the base class, and what was found."""
        return super().as_json() | {"calibration_accuracy": self.found}


class ContainerError(MoevitError):
    """A program container is damaged, or was made for another configuration or version."""


class SimulationError(MoevitError):
    """A simulation stopped: the machine reported an error code, or made no progress."""


class ToolError(MoevitError):
    """A program that moevit calls is missing or does not work; `mend` says how to install it."""


class VendorToolMissingError(ToolError):
    """All that was asked for is written, but the vendor's tool that goes on from there is not installed here."""

    exit_status = 3


class DeviceError(MoevitError):
    """A board or the machine on it cannot be used as asked. The classes below it say what kind of trouble it is."""


class WrongBoardError(DeviceError):
    """The bitstream was made for another board than this one."""


class WrongBitstreamError(DeviceError):
    """What answers is no machine of moevit, one of another version, or one of another configuration than expected."""


class DevicePermissionError(DeviceError):
    """The operating system does not let this user at the board."""


class DeviceTimeoutError(DeviceError):
    """The machine, or the board, did not answer in time."""


class MachineError(DeviceError):
    """The machine stopped a program with an error code.

    Parameters
    ----------
    code : int
        The ERROR register; see `moevit.registers.ErrorCode`.
    instruction : int
        The ERROR_INSTRUCTION register.
    what, where, mend
        As in the base class.
    """

    def __init__(self, what: str, *, code: int, instruction: int, where: str | None = None, mend: str | None = None):
        self.code = code
        self.instruction = instruction
        super().__init__(what, where=where, mend=mend)

    def as_json(self) -> dict[str, Any]:
        """As the base class, and the two registers."""
        return super().as_json() | {"code": self.code, "instruction": self.instruction}


@dataclass(frozen=True, kw_only=True)
class UnsupportedNode:
    """A node of a model that the accelerator cannot do: its name, operator, the reason, and a way out."""

    name: str
    op: str
    reason: str
    way_out: str

    def __str__(self) -> str:
        return f"{self.op} node '{self.name}': {self.reason} ({self.way_out})"


class UnsupportedOpError(MoevitError):
    """Some nodes of a model cannot be mapped; `nodes` holds all of them, not only the first."""

    def __init__(
        self, nodes: Sequence[UnsupportedNode], *, where: str | None = None, mend: str | None = None
    ):
        if not nodes:
            raise ValueError("an UnsupportedOpError needs at least one node")
        self.nodes = tuple(nodes)
        count = "1 node" if len(self.nodes) == 1 else f"{len(self.nodes)} nodes"
        super().__init__(
            f"{count} cannot be mapped: " + "; ".join(map(str, self.nodes)), where=where, mend=mend
        )

    def as_json(self) -> dict[str, Any]:
        """As the base class, and the nodes one by one."""
        nodes = [{"name": n.name, "op": n.op, "reason": n.reason, "way_out": n.way_out} for n in self.nodes]
        return super().as_json() | {"nodes": nodes}


class BeyondRangeError(UnsupportedOpError):
    """Values reach beyond what the machine's arithmetic holds, on the calibration data; a host's float does.

    `sources` are, for each of `nodes`, the model's nodes that compute these values, `task` is the program they are in.
    """

    def __init__(self, nodes: Sequence[UnsupportedNode], sources: Sequence[Sequence[str]], *, task: str = ""):
        super().__init__(nodes, where=f"task {task!r}" if task else None)
        self.sources = tuple(map(tuple, sources))
        self.task = task

    def of_task(self, task: str) -> "BeyondRangeError":
        """The same with its program named."""
        return BeyondRangeError(self.nodes, self.sources, task=task)

    def moved(self) -> dict[str, UnsupportedNode]:
        """Each of the model's nodes that compute these values, by name, and what is wrong with it."""
        return {s: replace(n, name=s) for n, names in zip(self.nodes, self.sources, strict=True) for s in names}


class HazardError(MoevitError):
    """The hazard checker found an instruction that could read too early or overwrite too early."""

    exit_status = 1


class MismatchError(MoevitError):
    """Two computations that must be equal are not; holds the first difference.

    Parameters
    ----------
    tensor : str
        The tensor they differ in.
    index : sequence of int
        Where in the tensor.
    got, want : number
        The value that was computed there and the reference's.
    instruction : int or str, optional
        The instruction that wrote it: its number, or its number and disassembly.
    where : str, optional
        As in the base class: the image, task or back-end.
    """

    exit_status = 1

    def __init__(
        self,
        *,
        tensor: str,
        index: Iterable[int],
        got: Any,
        want: Any,
        instruction: int | str | None = None,
        where: str | None = None,
    ):
        self.instruction = instruction
        self.tensor = tensor
        self.index = tuple(int(i) for i in index)
        self.got = got
        self.want = want
        position = ", ".join(map(str, self.index))
        writer = "" if instruction is None else f", written by instruction {instruction}"
        super().__init__(f"tensor '{tensor}'[{position}]{writer}: got {got}, want {want}", where=where)

    def as_json(self) -> dict[str, Any]:
        """As the base class, and the parts of the difference one by one."""
        parts = {"tensor": self.tensor, "index": list(self.index), "instruction": self.instruction}
        return super().as_json() | parts | {"got": self.got, "want": self.want}
