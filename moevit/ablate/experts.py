"""Expert by expert, against token by token: how often an expert's weights come from DRAM.

The model is compiled for both, and for pieces in between: so many tokens are routed, then the experts run over their
queues. Each program runs on the RTL. STREAMs wait until it is known whether the expert has tokens, so that every byte
is one that was needed.
"""

from moevit.ablate.result import Figure, How, NotApplicableError, Technique, Way
from moevit.ablate.subject import Subject
from moevit.sim.rtl import ImageRun, RtlSimulator

KEY = "experts"
TITLE = "Expert by expert"

MIDDLE = 8  #: tokens of the way in between

NOTES = (
    "All ways are the same model compiled with other numbers of tokens routed before the experts run; the queues are "
    "emptied in between. Expert bytes are counted on the bus: weights and parameters of the experts' STREAMs.",
    "Experts with a queue that is empty are skipped in all ways. Fetching weights before the gate has decided is "
    "switched off, also for the machine's own way, which otherwise waits less and may read what no token needs.",
)


def run(subject: Subject) -> Technique:
    """Compile and run all ways on the first input."""
    routes = [layer for layer in subject.task.layers if layer.kind == "route"]
    if not routes:
        raise NotApplicableError("the model has no experts")
    tokens = max(layer.rows for layer in routes)
    ways, outputs = [], []
    for key, label, rows in (
        ("ours", "all tokens, expert by expert", None),
        ("middle", f"{MIDDLE} tokens at a time", MIDDLE),
        ("token_by_token", "token by token", 1),
    ):
        if rows is not None and rows >= tokens:
            continue
        subject.progress(f"experts: {label}")
        program = subject.compile(speculate=False, route_rows=rows)
        task = program.task(subject.task.name)
        result = RtlSimulator(program, task, workers=1).run(subject.first_buffer())
        outputs.append(result.outputs)
        ways.append(Way(key, label, _figures(result.images[0]), ours=key == "ours"))
    same = all((y.tobytes() == outputs[0].tobytes()) for y in outputs)
    return Technique(
        KEY, TITLE, f"{len(routes)} layers with experts, {tokens} tokens, one input", tuple(ways), notes=NOTES,
        checks={"all ways give the same output bytes": same},
    )  # fmt: skip


def _figures(run: ImageRun) -> dict[str, Figure]:
    return {
        "expert_bytes": Figure(sum(run.region_bytes), "bytes", How.RTL),
        "cycles": Figure(run.cycles, "cycles", How.RTL),
        "instructions": Figure(run.retired, "instructions", How.RTL),
    }
