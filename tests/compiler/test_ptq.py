"""Post-training quantisation: it changes no function, and each step lowers the error it is there for."""

import dataclasses

import numpy as np
import pytest
from compile_helpers import ODD, float_inputs, mixture_graph, pictures
from numpy.typing import NDArray

from moevit.bench import vit
from moevit.compiler import interpret, ir
from moevit.compiler.calibrate import Range, observe, observe_apart
from moevit.compiler.driver import compile_graphs
from moevit.compiler.frontend.load import load
from moevit.compiler.fuse import fuse
from moevit.compiler.joint import places
from moevit.compiler.legalise import legalise
from moevit.compiler.ptq import smooth as smoothing
from moevit.compiler.ptq.clip import clipped
from moevit.compiler.ptq.emulate import Emulator
from moevit.compiler.ptq.sensitivity import sensitivity, sqnr_db
from moevit.compiler.ptq.smooth import smooth, spread_kept
from moevit.compiler.ptq.statistics import Channels, bucket_values, buckets
from moevit.compiler.ptq.trial import Known, Version
from moevit.compiler.ptq.tune import tune
from moevit.compiler.quantise import quantise
from moevit.compiler.stages import Stages
from moevit.config import CONFIGS
from moevit.sim.inputs import from_arrays
from moevit.sim.simulate import simulate

CONFIG = CONFIGS["tiny"]
SMALL = vit.Shape(image=(3, 32, 32), patch=8, dim=48, depth=2, heads=3, hidden=96, outputs=10, class_only=False)


def with_outliers(graph: ir.Graph, factor: float) -> ir.Graph:
    """Three channels of each LayerNorm, and one of each head's values, are much larger than the others."""

    def changed(op: ir.Op) -> ir.Op:
        if isinstance(op, ir.LayerNorm):
            gamma = op.gamma.copy()
            gamma[[1, 5, 40]] *= factor
            return dataclasses.replace(op, gamma=gamma)
        if isinstance(op, ir.Linear) and op.name.endswith((".q", ".k", ".v")):
            weight = op.weight.copy()
            weight[:, [1, 5, 40]] /= factor if op.name[-1] in "qk" else 1  # scores stay as they are
            weight[::16] *= factor / 4 if op.name.endswith(".v") else 1
            return dataclasses.replace(op, weight=weight)
        return op

    return graph.replaced(changed(op) for op in graph)


def images(graph: ir.Graph, count: int, seed: int) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    return {graph.inputs[0].name: rng.normal(size=(count, *graph.inputs[0].shape)).astype(np.float32)}


def error_db(stages: Stages, ranges: dict[str, Range], want: ir.Graph, inputs: dict[str, NDArray]) -> float:
    """Signal to noise of the quantised model's output beside the float model's."""
    emulator = Emulator(stages, quantise(stages, ranges, CONFIG), CONFIG)
    (output,) = want.outputs
    got = emulator.decode(output.tensor, emulator.run(inputs)[output.tensor])
    return sqnr_db(got, interpret.run(want, inputs)[output.tensor])


@pytest.mark.parametrize("form", ["plain", "bare", "narrow", "wide", "shared", "later", "two", "odd", "vit"])
def test_emulation_is_what_the_machine_computes(form: str) -> None:
    if form == "odd":
        graph, data = load(ODD), float_inputs(ODD)
    else:
        graph = vit.build("vit", SMALL) if form == "vit" else mixture_graph(form=form)
        data = pictures(graph)
    program = compile_graphs({"main": graph}, CONFIG, {"main": data}).program
    name = graph.inputs[0].name
    result = simulate(program, from_arrays({name: graph.inputs[0].model_shape}, {name: data[name][:3]}))
    graph = legalise(graph)
    tuned = tune(graph, observe_apart(graph, data))
    emulator = Emulator(tuned.stages, quantise(tuned.stages, tuned.ranges, CONFIG), CONFIG)
    tensors = emulator.run({name: data[name][:3]})
    for output in graph.outputs:
        got = output.arrange(emulator.decode(output.tensor, tensors[output.tensor]))
        step = emulator.quantised.formats[output.tensor].scale
        np.testing.assert_allclose(result.outputs[output.name], got, rtol=0, atol=step / 100)


@pytest.mark.parametrize("form", ["plain", "narrow", "shared", "two", "vit"])
def test_smoothing_changes_no_function(form: str) -> None:
    graph = with_outliers(vit.build("vit", SMALL), 30) if form == "vit" else mixture_graph(form=form)
    data = pictures(graph)
    after = smooth(Version(graph, observe(graph, data)))
    changed, statistics = after.graph, after.statistics
    assert any(a is not b for a, b in zip(graph, changed, strict=True))
    want, got = (interpret.run(g, data)[graph.outputs[0].tensor] for g in (graph, changed))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.abs(want).max())
    seen = observe(changed, data)  # what the statistics say of the changed tensors is what they are
    for tensor, channels in statistics.channels.items():
        reach = np.abs(seen.channels[tensor].high).max() + np.abs(seen.channels[tensor].low).max()
        for side in ("low", "high", "mean"):
            np.testing.assert_allclose(
                getattr(channels, side), getattr(seen.channels[tensor], side), rtol=1e-3, atol=1e-3 * reach
            )
        assert statistics.ranges[tensor].peak >= 0.999 * seen.ranges[tensor].peak


def test_smoothing_recovers_what_outlier_channels_cost() -> None:
    graph = with_outliers(vit.build("vit", SMALL), 30)
    calibration, test = images(graph, 8, 1), images(graph, 4, 2)
    seen = observe(graph, calibration)
    before = error_db(fuse(graph), seen.ranges, graph, test)
    smoothed = smooth(Version(graph, seen))
    after = error_db(smoothed.stages, smoothed.statistics.ranges, graph, test)
    print(f"{before:.1f} dB before, {after:.1f} dB after")
    assert after > before + 4


def test_smoothing_does_not_touch_what_it_must_not() -> None:
    """A norm that leaves the model stays as it is; its channels are evened out where they are loaded."""
    graph = vit.build("vit", SMALL)
    norm = next(op for op in reversed(graph.ops) if isinstance(op, ir.LayerNorm))
    kept = dataclasses.replace(
        graph, outputs=(*graph.outputs, ir.Output(name="tokens", tensor=norm.output, model_shape=(17, 48)))
    )
    changed = smooth(Version(kept, observe(kept, images(kept, 4, 1)))).graph
    assert next(op for op in changed if op.name == norm.name) is norm


def test_a_stored_norm_has_a_scale_for_each_channel() -> None:
    whole = with_outliers(vit.build("vit", SMALL), 30)
    norm = next(op for op in whole if op.name == "block1.norm2")
    ops = whole.ops[: whole.ops.index(norm) + 1]
    graph = dataclasses.replace(
        whole, ops=ops, outputs=(ir.Output(name="tokens", tensor=norm.output, model_shape=(17, 48)),)
    )
    calibration, test = images(graph, 8, 1), images(graph, 2, 2)
    seen = observe(graph, calibration)
    spread = spread_kept(Version(graph, seen))
    stages, statistics = spread.stages, spread.statistics
    float_rows = interpret.run(graph, test)
    rows = {}
    for name, of, ranges in (("one", fuse(graph), seen.ranges), ("each", stages, statistics.ranges)):
        emulator = Emulator(of, quantise(of, ranges, CONFIG), CONFIG)
        last = emulator.quantised.stages[-1]
        given = {last.stage.x: emulator.encode(last.stage.x, float_rows[last.stage.x])}
        rows[name] = emulator.decode(norm.output, emulator.step(last, given)[norm.output])
    small = np.setdiff1d(np.arange(48), [1, 5, 40])
    one, each = (sqnr_db(rows[n][..., small], float_rows[norm.output][..., small]) for n in ("one", "each"))
    print(f"channels that are not outliers: {one:.1f} dB with one scale, {each:.1f} dB with their own")
    assert each > one + 15


def test_statistics_of_batches_are_those_of_all() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(loc=2, size=(6, 5, 7))
    joined = Channels.of(x[:2]).joined(Channels.of(x[2:]))
    scale, shift = rng.uniform(0.5, 2, 7), rng.normal(size=7)
    for got, values in ((joined, x), (joined.changed(scale, shift), (x - shift) / scale)):
        flat = values.reshape(-1, 7)
        np.testing.assert_allclose(got.low, flat.min(axis=0))
        np.testing.assert_allclose(got.high, flat.max(axis=0))
        np.testing.assert_allclose(got.mean, flat.mean(axis=0))
        np.testing.assert_allclose(got.square, np.square(flat).mean(axis=0))
        assert got.count == 30


def test_buckets_hold_what_is_positive() -> None:
    x = np.array([[0.5, -3.0], [100.0, 0.001], [0.5, 7.0]], np.float32)
    counted = buckets(x, np.array([1.0, 10.0]))
    positive = counted * (bucket_values() > 1e-30)
    assert positive.sum() == 1 + 1 + 10 + 1 + 10
    mean = (positive @ bucket_values()) / positive.sum()
    assert mean == pytest.approx((0.5 + 100 + 0.01 + 0.5 + 70) / 23, rel=0.01)


def test_values_are_clipped_only_where_it_pays() -> None:
    rng = np.random.default_rng(3)
    even = rng.uniform(0, 4, (400_000, 4)).astype(np.float32)
    rare = rng.exponential(0.2, (400_000, 4)).astype(np.float32)
    many = rare.copy()
    many[:2000, 2] = rare.max()
    weights = np.ones(4)
    tops = {}
    for name, values in (("even", even), ("rare", rare), ("many", many)):
        tops[name] = clipped(Range(-0.17, float(values.max())), buckets(values, weights)).high / values.max()
    assert tops["even"] > 0.97 and tops["many"] > 0.97
    assert tops["rare"] < 0.95


def test_sensitivity_names_the_stage_that_is_at_fault() -> None:
    graph = vit.build("vit", SMALL)
    seen = observe(graph, images(graph, 4, 1))
    stages = fuse(graph)
    spoilt = next(s for s in stages.stages if s.name.endswith("block1.proj"))
    context = next(s.x for s in stages.stages if s is spoilt)
    ranges = seen.ranges | {context: Range(-20 * seen.ranges[context].peak, 0)}
    report = list(sensitivity(stages, quantise(stages, ranges, CONFIG), CONFIG, images(graph, 2, 2)))
    assert [r.stage for r in report] == [s.name for s in stages.stages]
    by_output = sorted(report, key=lambda r: r.sqnr_db)
    assert {r.stage for r in by_output[:2]} == {spoilt.name, "block1.attention"}
    assert all(25 < r.local_sqnr_db < 120 for r in report if r.stage not in (spoilt.name, "block1.attention"))
    assert all(0.9 < r.cosine <= 1 for r in report)


def steady(graph: ir.Graph) -> ir.Graph:
    """Patches hardly matter beside their positions, as in models with random weights: images differ little."""

    def changed(op: ir.Op) -> ir.Op:
        if isinstance(op, ir.PatchEmbed):
            return dataclasses.replace(op, weight=op.weight * np.float32(0.003))
        if isinstance(op, ir.Assemble):
            rng = np.random.default_rng(9)
            return dataclasses.replace(op, pos=rng.normal(size=op.pos.shape).astype(np.float32))
        return op

    return graph.replaced(changed(op) for op in graph)


FORMS = {"plain": lambda g: g, "outliers": lambda g: with_outliers(g, 30), "steady": steady}


@pytest.mark.parametrize("count", [1, 2, 8])
@pytest.mark.parametrize("form", FORMS)
def test_tuning_does_not_harm_and_keeps_what_pays(form: str, count: int) -> None:
    graph = FORMS[form](vit.build("vit", dataclasses.replace(SMALL, class_only=True)))
    test = images(graph, 16, 2)
    calibrated = observe_apart(graph, images(graph, count, 1))
    tuned = tune(graph, calibrated)
    before = error_db(fuse(graph), calibrated.whole.ranges, graph, test)
    after = error_db(tuned.stages, tuned.ranges, graph, test)
    print(f"{form}, {count} images: {before:.1f} dB before, {after:.1f} dB after, {sorted(tuned.accepted)}")
    assert after > before + (3 if form == "outliers" else -1)


def test_a_change_that_saturates_is_turned_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """Balancing after LayerNorm that leaves channels too little room costs much; the trial sees it."""
    monkeypatch.setattr(smoothing, "MARGIN", 0.3)
    graph = vit.build("vit", SMALL)
    test, calibrated = images(graph, 16, 2), observe_apart(graph, images(graph, 8, 1))
    all_of_it = smooth(Version(graph, calibrated.whole))
    tuned = tune(graph, calibrated)
    before = error_db(fuse(graph), calibrated.whole.ranges, graph, test)
    untried = error_db(all_of_it.stages, all_of_it.statistics.ranges, graph, test)
    tried = error_db(tuned.stages, tuned.ranges, graph, test)
    print(f"{before:.1f} dB before, {untried:.1f} dB untried, {tried:.1f} dB tried")
    assert untried < before - 6
    assert tried > before - 1


def test_some_images_are_held_out() -> None:
    graph = vit.build("vit", SMALL)
    data = images(graph, 9, 1)
    (name,) = data
    got = observe_apart(graph, data)
    held, part = data[name][::4], data[name][[1, 2, 3, 5, 6, 7]]
    np.testing.assert_array_equal(got.held[name], held)
    assert got.fresh
    for seen, of in ((got.whole, data[name]), (got.part, part)):
        want = observe(graph, {name: of})
        assert seen.ranges.keys() == want.ranges.keys()
        for tensor, r in want.ranges.items():
            assert (seen.ranges[tensor].low, seen.ranges[tensor].high) == pytest.approx((r.low, r.high), rel=1e-4)
        for tensor, channels in want.channels.items():
            assert seen.channels[tensor].count == channels.count
            np.testing.assert_allclose(seen.channels[tensor].square, channels.square, rtol=1e-4, atol=1e-9)
    one = observe_apart(graph, {name: data[name][:1]})
    assert not one.fresh and one.part is one.whole


def test_tasks_share_what_their_trials_decide() -> None:
    graph = with_outliers(vit.build("vit", SMALL), 30)
    calibrated = observe_apart(graph, images(graph, 4, 1))
    known: Known = {}
    first = tune(graph, calibrated, places(graph), known)
    assert known and first.accepted
    renamed = graph.replaced(dataclasses.replace(op, name=f"other.{op.name}") for op in graph)
    turned = dict.fromkeys(known, False)
    assert not tune(renamed, calibrated, places(renamed), turned).accepted
    assert tune(renamed, calibrated, places(renamed), dict(known)).accepted == first.accepted
    assert tune(graph, calibrated, {}, turned).accepted == first.accepted  # names that are no places
