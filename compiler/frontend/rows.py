"""Passes over the finished graph: choosing tokens early, removing what is not used."""

from dataclasses import replace

from moevit.compiler.ir import Activation, Graph, LayerNorm, Linear, Op, Rows

RowWise = LayerNorm | Linear | Activation


def choose_rows_early(graph: Graph) -> Graph:
    """Move `Rows` before row-wise operations that nothing else reads: they then compute no unused tokens.

    `Rows(LayerNorm(x))` becomes `LayerNorm(Rows(x))`, again and again; an addition or an attention stops it.
    Where several `Rows` read one operation, each gets its own.
    """
    while True:
        found = _movable(graph)
        if found is None:
            return graph
        graph = _move(graph, *found)


def _movable(graph: Graph) -> tuple[RowWise, list[Rows]] | None:
    kept = {output.tensor for output in graph.outputs}
    for op in graph.ops:
        if not isinstance(op, RowWise) or op.output in kept:
            continue
        readers = graph.consumers(op.output)
        rows = [r for r in readers if isinstance(r, Rows)]
        if rows and len(rows) == len(readers) and sum(r.count for r in rows) < graph.tensors[op.output][0]:
            return op, rows
    return None


def _move(graph: Graph, producer: RowWise, readers: list[Rows]) -> Graph:
    """The graph with `producer` after its readers, once for each."""
    taken = set(graph.tensors) - {r.output for r in readers} - {producer.output}

    def unique(stem: str) -> str:
        name, count = stem, 1
        while name in taken:
            count += 1
            name = f"{stem}.{count}"
        taken.add(name)
        return name

    names: dict[str, str] = {}
    ops: list[Op] = []
    for op in graph.ops:
        if op is producer:
            continue
        if isinstance(op, Rows) and op in readers:
            chosen = unique(f"{producer.x}.rows")
            ops.append(replace(op, name=chosen, output=chosen, x=producer.x))
            names[op.output] = unique(producer.output)
            ops.append(replace(producer, name=names[op.output], output=names[op.output], x=chosen))
        else:
            ops.append(op.renamed(names))
    outputs = tuple(replace(o, tensor=names.get(o.tensor, o.tensor)) for o in graph.outputs)
    return replace(graph, ops=tuple(ops), outputs=outputs)


def remove_dead(graph: Graph) -> Graph:
    """Without the operations that no output needs."""
    alive = {output.tensor for output in graph.outputs}
    kept: list[Op] = []
    for op in reversed(graph.ops):
        if op.output in alive:
            alive.update(op.inputs)
            kept.append(op)
    return graph.replaced(reversed(kept))
