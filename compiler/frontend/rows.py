"""Passes over the finished graph: choosing tokens early, removing what is not used."""

from moevit.compiler.ir import Activation, Graph, LayerNorm, Linear, Op, Rows


def choose_rows_early(graph: Graph) -> Graph:
    """Move `Rows` before the row-wise operations that only it reads, so that they compute no unused tokens.

    `Rows(LayerNorm(x))` becomes `LayerNorm(Rows(x))`, repeatedly; an addition or an attention stops it.
    """
    ops = list(graph.ops)
    kept = {output.tensor for output in graph.outputs}
    changed = True
    while changed:
        changed = False
        for i, rows in enumerate(ops):
            if not isinstance(rows, Rows):
                continue
            producer = next((op for op in ops if op.output == rows.x), None)
            readers = [op for op in ops if rows.x in op.inputs]
            if isinstance(producer, LayerNorm | Linear | Activation) and len(readers) == 1 and rows.x not in kept:
                ops[i : i + 1] = _swapped(producer, rows)
                ops.remove(producer)
                changed = True
                break
    return graph.replaced(ops)


def _swapped(producer: LayerNorm | Linear | Activation, rows: Rows) -> list[Op]:
    """`rows(producer(x))` as `producer(rows(x))`: the intermediate tensor takes the name of the operation before."""
    middle = rows.renamed({rows.x: producer.x, rows.output: producer.output})
    return [middle, producer.renamed({producer.x: producer.output, producer.output: rows.output})]


def remove_dead(graph: Graph) -> Graph:
    """Without the operations that no output needs."""
    alive = {output.tensor for output in graph.outputs}
    kept: list[Op] = []
    for op in reversed(graph.ops):
        if op.output in alive:
            alive.update(op.inputs)
            kept.append(op)
    return graph.replaced(reversed(kept))
