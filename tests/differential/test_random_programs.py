"""What random programs reach, seen on the instruction-level simulator alone."""

from collections import Counter

import numpy as np

from differential.random_program import random_program
from moevit.config import BROUGHT_QUEUE_DEPTH, CONFIGS
from moevit.isa import Linear, Stream
from moevit.sim.isa import IsaSimulator, Memories

SEEDS = range(200)


def test_mixtures_reach_the_corners() -> None:
    """Empty and full queues in every kind of LINEAR, streams of every kind far ahead, tied and certain choices."""
    lengths: dict[tuple[int, int], Counter] = {}  # by (gather, scatter)
    streams: Counter = Counter()
    gates: Counter = Counter()
    lead = 0
    for seed in SEEDS:
        p = random_program(CONFIGS["tiny"], seed)
        simulator = IsaSimulator(p.config, p.image, p.instructions, p.output_bytes)
        queues: dict[int, np.ndarray] = {}

        def keep(number: int, memories: Memories, queues=queues) -> None:
            queues[number] = memories.queue[0].copy()

        memories = simulator.run(p.inputs, after=keep)
        gate, tokens, predicated = -1, 0, 0
        for number, i in enumerate(p.instructions):
            if isinstance(i, Stream) and i.predicated:
                streams["speculative" if i.speculative else "waits"] += 1
                predicated += 1
            if isinstance(i, Linear) and i.route:
                gate, tokens = number, i.n_rows + (0 if i.clear else tokens)
                for what in ("keep", "clear", "release"):
                    gates[what, getattr(i, what)] += 1
                gates["order", i.route] += 1
                gates["experts", i.experts > 8] += 1
                gates["top_k", i.top_k] += 1
                gates["threshold", i.threshold > 0] += 1
                scores = queues[number][i.token : i.token + i.n_rows]
                gates["tied", any(len(set(row[row > 0])) < np.count_nonzero(row) for row in scores)] += 1
                gates["certain", bool((scores > 65_000).any())] += 1
            if isinstance(i, Linear) and (i.gather or i.scatter):
                predicated -= 1
                lead = max(lead, predicated)
                length = int(memories.lengths[gate][0, i.queue])
                kind = "empty" if length == 0 else "full" if length == tokens else "some"
                lengths.setdefault((i.gather, i.scatter), Counter())[kind] += 1
    assert lengths.keys() == {(1, 0), (0, 1), (1, 1)}
    for counts in lengths.values():
        assert min(counts[kind] for kind in ("empty", "full", "some")) >= 10, lengths
    assert min(streams["speculative"], streams["waits"]) > 100
    both = [(what, value) for what in ("keep", "clear", "release", "experts", "threshold", "tied", "certain")
            for value in (0, 1)]  # fmt: skip
    wanted = [*both, ("order", 1), ("order", 2), *(("top_k", k) for k in range(1, 5))]
    assert min(gates[w] for w in wanted) >= 10, gates
    assert lead > BROUGHT_QUEUE_DEPTH


def test_programs_without_mixtures() -> None:
    for seed in range(10):
        p = random_program(CONFIGS["wide"], seed, mixtures=False)
        assert not any(i.route or i.gather or i.scatter for i in p.instructions if isinstance(i, Linear))
