"""Gives gates with random weights the use of experts that training gives them.

A random transformer maps all tokens to nearly the same vector, so a random gate sends all to the same two experts: far
less work than a trained model has, which is trained for balance. Here each gate is chosen from data, layer by layer in
the float graph: its directions are random ones, stretched so that tokens differ about as much in each, and its biases
are moved until every expert has its share.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from moevit.compiler import ir
from moevit.compiler.interpret import evaluate, gate_logits, route, take_input

LOGIT_SPREAD = 2.0  #: standard deviation of a token's logits: its best expert's score is then about a half
FLOOR = 1.0  #: times the tokens' mean variance: directions with much less are not stretched to be like the others
UNEVEN = (0.8, 1.2)  #: an expert's share lies between these times the mean share
ROUNDS = 100  #: of moving the biases


def balance(graph: ir.Graph, inputs: Mapping[str, NDArray], seed: int) -> ir.Graph:
    """The graph with other gates; the layers after each see what it does.

    Parameters
    ----------
    graph : with random gates
    inputs : images [B, ...] by input name, from which the gates are chosen
    seed : of the directions and shares
    """
    rng = np.random.default_rng(seed)
    tensors = {entry.name: take_input(entry, inputs) for entry in graph.inputs}
    ops = []
    for op in graph.ops:
        operands = [tensors[name] for name in op.inputs]
        if isinstance(op, ir.MoE):
            op = _balanced(op, operands[0], rng)
        tensors[op.output] = evaluate(op, *operands).astype(np.float32, copy=False)
        ops.append(op)
    return graph.replaced(ops)


def _balanced(op: ir.MoE, x: ir.Array, rng: np.random.Generator) -> ir.MoE:
    """The mixture with a gate for tokens like x [B, tokens, channels]."""
    tokens = x.reshape(-1, x.shape[-1]).astype(np.float64)
    mean = tokens.mean(axis=0)
    covariance = (tokens - mean).T @ (tokens - mean) / len(tokens)
    directions = np.linalg.qr(rng.normal(size=(x.shape[-1], op.experts)))[0].T @ _whitening(covariance)
    spread = np.sqrt(np.einsum("ei,ij,ej->e", directions, covariance, directions))
    weight = LOGIT_SPREAD * directions / spread[:, None]
    op = dataclasses.replace(
        op, gate_weight=weight.astype(np.float32), gate_bias=-(weight @ mean).astype(np.float32)
    )
    share = rng.uniform(*UNEVEN, size=op.experts)
    return dataclasses.replace(op, gate_bias=op.gate_bias + _offsets(op, tokens.astype(np.float32), share))


def _whitening(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse square root: as a function of the matrix it does not depend on the order or signs of eigenvectors."""
    variance, vectors = np.linalg.eigh(covariance)
    return (vectors / np.sqrt(variance + FLOOR * variance.mean())) @ vectors.T


def _offsets(op: ir.MoE, tokens: ir.Array, share: NDArray[np.float64]) -> ir.Array:
    """What to add to the biases so that the experts' numbers of tokens are in proportion to ``share``."""
    logits = gate_logits(op, tokens)
    want = share / share.sum() * len(tokens) * op.top_k
    offsets = np.zeros(op.experts)
    for n in range(ROUNDS):
        chosen, _ = route(op, logits + offsets.astype(np.float32))
        have = np.bincount(chosen.ravel(), minlength=op.experts)
        offsets += 0.5 * (1 - n / ROUNDS) * np.log(want / (have + 1))
    return offsets.astype(np.float32)
