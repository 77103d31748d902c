"""The text of docs/operators.md: what becomes of each ONNX operator, from the front end's own table of them."""

import textwrap

from moevit.cli.energy_page import GENERATED
from moevit.compiler.frontend.trace import HANDLERS, WAYS_OUT
from moevit.compiler.ir import ACTIVATION_KINDS

_INTRODUCTION = """\
# Operators

What becomes of each ONNX operator of a model that `moevit compile` is given. How to bring a model is in
[bring-your-own-model.md](bring-your-own-model.md).

Where an operator runs depends on what it is a part of, and not on its name: the front end recognises operations by
what they compute. A Softmax between two products of matrices is the machine's attention, one at the end of a model is
the host's.
"""

_HOST = """\
## On the host

Every node that the tables above do not cover, or that stands where they do not say, runs in onnxruntime: convolutions
that overlap or are transposed, resizing, pooling, softmax and argmax of a result, recurrent layers, and all else that
onnxruntime's CPU has. So do an activation whose input goes beyond 256 on the calibration data, an attention whose
scores and a mixture of experts whose gate's logits go beyond 354.9: the machine's intermediate values end there.
`moevit compile` lists each node with the reason and a way out; with `--strict` they are refused.
For some operators the way out is a particular one:
"""

_REFUSED = """\
## Refused

| what | why |
|---|---|
| an extent that is dynamic, but for the batch | a program is for one shape: memory and order are fixed with it |
| a batch of more than one | the machine takes one image at a time |
| constants that are NaN or infinite, complex, or damaged | no result could be right |
| operators that onnxruntime cannot run, or data that it refuses | there is nothing to compare with, and no host |
| nodes that draw random numbers, as the noise of a gate that is exported in training mode | the answer differs from \
run to run |
| a model of which nothing is left for the machine | the error lists all its nodes |
"""

_ANYWHERE = "only changes which elements are meant: costs nothing"
_FUNCTION = "part of an activation or of a LayerNorm that is spelled out, as a function of one operand"
_GATE = "part of the gate of a mixture of experts"
_CONSTANT = "with a constant it is folded into a layer beside it"

#: By group: what the operators have in common, and for each what it can be on the machine.
GROUPS: dict[str, dict[str, str]] = {
    "Products": {
        "MatMul": "a linear layer with a constant matrix; scores or context in attention; experts side by side",
        "Gemm": "a linear layer; of any transposition, alpha and beta",
        "Einsum": "as the MatMul that it stands for",
        "Conv": "a patch embedding: stride equal to the kernel, no padding, one group; 1×1 is a linear layer",
        "ConvTranspose": "a linear layer: stride equal to the kernel, no padding, one group",
        "Attention": "attention without cache and soft cap; grouped queries too",
        "com.microsoft.MoE": "a mixture of experts of two layers each",
    },
    "Fused by onnxruntime": {
        "com.microsoft.FusedMatMul": "as MatMul, its operands transposed, with a scale",
        "com.microsoft.Attention": "a linear layer for q, k and v, and attention without mask",
        "com.microsoft.MultiHeadAttention": "attention without mask, of q, k and v side by side",
        **dict.fromkeys((f"com.microsoft.{op}" for op in ("Gelu", "BiasGelu", "FastGelu", "QuickGelu")),
                        "an activation, behind a bias where it has one"),
        "com.microsoft.SkipLayerNormalization": "a residual, and its LayerNormalization",
        "com.microsoft.SkipSimplifiedLayerNormalization": "a residual, and its RMSNormalization",
    },
    "Arithmetic": {
        "Add": f"a residual, a bias, a position; {_CONSTANT}",
        "Sub": f"as Add; in a LayerNorm that is spelled out; {_CONSTANT}",
        "Mul": f"an expert's output with its score; part of an activation; {_CONSTANT}",
        "Div": f"in a LayerNorm that is spelled out; {_CONSTANT}",
        "Sum": "as Add",
        "Pow": _FUNCTION, "Max": _FUNCTION, "Min": _FUNCTION,
        "BatchNormalization": "with fixed statistics: folded into a layer beside it",
    },
    "Functions": {
        "Gelu": "an activation, exact or by tanh; the machine's table serves both",
        "Relu": "an activation",
        "Swish": "an activation where its alpha is 1",
        **dict.fromkeys(
            ("Erf", "Tanh", "Sigmoid", "Sqrt", "Reciprocal", "Exp", "Log", "Abs", "Softplus", "HardSwish", "Mish",
             "HardSigmoid", "LeakyRelu", "Elu", "Clip"), _FUNCTION,
        ),
        "Neg": "folded into what makes or reads its operand",
    },
    "Normalisation and reduction": {
        "LayerNormalization": "over the channels of a token",
        "RMSNormalization": "over the channels of a token, of a stream that weights can turn to where its mean is zero",
        "Softmax": f"over the keys, in attention; {_GATE}",
        "ReduceMean": "over all tokens, as attention that weighs them alike; in a LayerNorm that is spelled out",
        "GlobalAveragePool": "over all tokens",
        "ReduceSum": "over the experts of a mixture",
    },
    "Experts": {
        "TopK": _GATE, "Greater": _GATE, "GreaterOrEqual": _GATE, "Less": _GATE, "LessOrEqual": _GATE, "Not": _GATE,
        "GatherElements": f"{_GATE}; else {_ANYWHERE}",
        "ScatterElements": f"{_GATE}; else {_ANYWHERE}",
        "Where": f"{_GATE}; of a constant condition {_ANYWHERE}",
    },
    "Rearrangement": {
        **dict.fromkeys(
            ("Reshape", "Transpose", "Split", "Slice", "Gather", "GatherND", "Squeeze", "Unsqueeze", "Flatten",
             "Expand", "Tile", "DepthToSpace", "SpaceToDepth", "Concat", "ScatterND"), _ANYWHERE,
        ),
        "Pad": f"of constants {_ANYWHERE}; patches and channels are not padded",
    },
    "Passed over": {
        "Identity": "nothing", "Dropout": "nothing", "Cast": "nothing, between kinds of floats", "CastLike": "nothing",
        "Shape": "a constant", "Size": "a constant", "IsNaN": "false", "IsInf": "false",
        "If": "the branch that is taken, where that does not depend on the data",
        "Constant": "a constant, as is every node whose operands are constants",
    },
}  # fmt: skip
NO_HANDLER = "Passed over"  #: the group whose operators need none


def operators_page() -> str:
    """The page. Raises ValueError if the front end reads an operator that nothing is said of, or the reverse."""
    said = {op for group, ops in GROUPS.items() if group != NO_HANDLER for op in ops}
    if said != set(HANDLERS):
        raise ValueError(
            f"GROUPS in {__name__} and HANDLERS of the front end differ by {', '.join(sorted(said ^ set(HANDLERS)))}"
        )
    parts = [GENERATED, _INTRODUCTION.strip(), "## On the machine"]
    for group, ops in GROUPS.items():
        rows = [f"| {op} | {note} |" for op, note in ops.items()]
        parts += [f"### {group}", "\n".join(["| operator | what it can be |", "|---|---|", *rows])]
    kinds = ", ".join(ACTIVATION_KINDS)
    parts.append(
        textwrap.fill(
            f"The activations are {kinds}. A function that is spelled out is evaluated, and is one of them if its "
            "values are; any other runs on the host.", 120,
        )
    )  # fmt: skip
    ways = [f"| {op} | {way} |" for op, way in WAYS_OUT.items()]
    parts += [_HOST.strip(), "\n".join(["| operator | way out |", "|---|---|", *ways]), _REFUSED.strip()]
    return "\n\n".join(parts) + "\n"
