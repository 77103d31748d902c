"""Holds every figure that a report's page shows to its JSON, looked up here by tables of their own."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from report_page import Page, PageTable, plot_values

from moevit.cli.report.tables import shown

Row = Mapping[str, Any]
Columns = Mapping[str, Callable[[Row], Any]]


def key(*path: str | int) -> Callable[[Row], Any]:
    """What stands at a path."""

    def get(row: Row) -> Any:
        value: Any = row
        for step in path:
            value = None if value is None else value.get(step) if isinstance(value, dict) else value[step]
        return value

    return get


def thousandfold(*path: str | int) -> Callable[[Row], Any]:
    return lambda row: 1000 * key(*path)(row)


METHODS = {"rtl": "simulated (Verilog)", "cycle": "simulated (timing model)", "vivado": "Vivado's estimate"}


def method(name: str) -> Callable[[Row], Any]:
    return lambda row: METHODS.get(row[name], row[name])


MACHINE: Columns = {
    "accelerator": key("name"), "network": key("network"), "runs on": key("board"), "clock, MHz": key("clock_mhz"),
    "configuration": key("configuration"), "source": key("source"),
}  # fmt: skip
LATENCY: Columns = MACHINE | {
    "precision": key("precision"), "MACs a frame": key("macs"), "ms a frame": key("ms"), "latency is": method("method"),
    "counted": key("counted"), "GMAC/s": lambda row: row["macs"] / row["ms"] / 1e6,
}  # fmt: skip
ENERGY: Columns = MACHINE | {
    "mJ, low": key("mj", 0), "mJ a frame": key("mj", 1), "mJ, high": key("mj", 2), "energy is": method("energy_method"),
    "mJ for 10⁹ MACs": lambda row: row["mj"][1] * 1e9 / row["macs"],
}  # fmt: skip
LAYERS: Columns = {
    "layer": key("name"), "does": key("role"), "shape": key("shape"), "MACs": key("macs"), "cycles": key("cycles"),
    "use of the multipliers": key("mac_utilisation"), "DRAM bytes": key("dram_bytes"),
    "MACs a DRAM byte": key("dram_intensity"), "MACs an operand byte": key("operand_intensity"),
    "GMAC/s": key("gmacs"),
}  # fmt: skip
PARTS: Columns = {
    "part": key("name"), "events, or seconds": key("count"),
    "times": lambda row: row["constant"] or "watts of the source",
    "mJ": thousandfold("joules", "typical"), "mJ, low": thousandfold("joules", "low"),
    "mJ, high": thousandfold("joules", "high"),
}  # fmt: skip
MEMORY: Columns = {
    "tensor": key("name"), "type": key("dtype"), "memory": key("memory"), "first word": key("first_word"),
    "last word": key("last_word"), "bytes": key("bytes"), "written by instruction": key("written"),
    "last read by": key("read"),
}  # fmt: skip
TIMELINE: Columns = {
    "unit": key("unit"), "layers": key("kind"), "from cycle": key("start"), "to cycle": key("end"),
}  # fmt: skip
STAGES: Columns = {"stage": key("stage"), "cause": key("cause"), "cycles": key("cycles"), "share": key("share")}
EXPERTS: Columns = {
    "gate": key("gate"), "expert": key("expert"), "tokens, mean": key("mean"), "fewest": key("fewest"),
    "most": key("most"),
}  # fmt: skip
ACCURACY: Columns = {"output": key("output"), "figure": key("figure"), "value": key("value")}
CONSTANTS: Columns = {
    "an event": key("name"), "unit": key("unit"), "value": key("typical"), "low": key("low"), "high": key("high"),
    "source": key("source"),
}  # fmt: skip
VALIDATION: Columns = {
    "design": lambda row: f"{row['name']}, {row['model']}", "board": key("board"),
    "published W": key("published_watts"), "model W": key("estimated_watts", "typical"),
    "W, low": key("estimated_watts", "low"),
    "W, high": key("estimated_watts", "high"), "in range": key("inside"), "source": key("source"),
    "model / published": lambda row: row["estimated_watts"]["typical"] / row["published_watts"],
}  # fmt: skip
RESOURCES: Columns = {"resource": key("resource"), "takes": key("takes"), "device has": key("has")}


def tables_of_task(task: Row) -> dict[str, tuple[Columns, Sequence[Row]]]:
    """By title: what the columns are, and the JSON's rows."""
    stages = [
        {"stage": stage, "cause": cause, "cycles": cycles, "share": cycles / task["cycles"]}
        for stage, causes in task["simulation"]["stages"].items()
        for cause, cycles in causes.items()
    ]
    experts = [
        {"gate": gate["gate"], "expert": n, "mean": mean, "fewest": gate["fewest"][n], "most": gate["most"][n]}
        for gate in task["experts"]
        for n, mean in enumerate(gate["tokens"])
    ]
    out: dict[str, tuple[Columns, Sequence[Row]]] = {
        "Cycles by layer": (LAYERS, task["layers"]),
        "What each stage does": (STAGES, stages),
        "Energy by part": (PARTS, task["energy"]["parts"]),
        "Memory over the program": (MEMORY, task["memory"]["tensors"]),
    }
    if experts:
        out["Use of the experts"] = (EXPERTS, experts)
    if task.get("timeline"):
        out["Timeline"] = (TIMELINE, task["timeline"])
    if task["accuracy"]:
        figures = task["accuracy"]["outputs"]
        out["Accuracy"] = ACCURACY, [
            {"output": output, "figure": figure, "value": value}
            for output, of in figures.items()
            for figure, value in of.items()
        ]
    return {f"{title}: the numbers": what for title, what in out.items()}


def expected_tables(values: Row) -> dict[str, dict[str, tuple[Columns, Sequence[Row]]]]:
    """By section and title."""
    taken, device = values["resources"]["estimate"], values["resources"]["device"] or {}
    resources = [
        {"resource": name, "takes": taken[name.lower()], "has": device.get(name.lower())}
        for name in ("LUT", "FF", "DSP", "BRAM36", "URAM")
    ]
    machines = values["machines"]
    out = {f"Task {name}": tables_of_task(task) for name, task in values["tasks"].items()}
    out["Beside other ways to run it"] = {
        "Latency: the numbers, with sources": (LATENCY, machines),
        "Energy: the numbers, with sources": (ENERGY, [row for row in machines if row["mj"]]),
    }
    out["How these figures came about"] = {
        "Constants": (CONSTANTS, values["energy_constants"]),
        "Model against published power": (VALIDATION, values["energy_validation"]),
        "Resources": (RESOURCES, resources),
    }
    return out


def check_table(table: PageTable, columns: Columns, rows: Sequence[Row]) -> int:
    """Compare each cell; returns how many there were."""
    assert sorted(table.columns) == sorted(columns), table.title
    body = [cells for cells in table.rows if cells]
    assert len(body) == len(rows), table.title
    for cells, row in zip(body, rows, strict=True):
        assert cells == [shown(columns[name](row)) for name in table.columns], table.title
    return len(rows) * len(columns)


def millijoules(energy: Row) -> tuple[str, str, str]:
    low, typical, high = (shown(1000 * energy["total_joules"][k]) for k in ("low", "typical", "high"))
    return low, typical, high


def images(of: Row) -> str:
    return "one image" if of["images"] == 1 else f"{shown(of['images'])} images"


def expected_texts(values: Row) -> dict[str, list[str]]:
    """By section: what it says with figures in it."""
    config, machine = values["config"], values["machine"]
    head = [
        f"{values['container']} on {config['name']}",
        f"Configuration {config['name']}: {config['rows']}×{config['columns']}×{config['depth']} array, "
        f"{shown(values['macs_per_cycle'])} multiply-accumulates a cycle, {shown(config['clock_mhz'])} MHz",
        f"digest {values['config_digest']}",
        f"Made {values['made']} on {machine['processor']} ({machine['cpus']} CPUs)",
    ]
    out = {"": head}
    if config["device"] != "none":
        head.append(f"sized for {config['device']}")
    head += [f"{source['task']} from {source['file']}" for source in values["sources"]]
    for name, task in values["tasks"].items():
        simulation, (low, typical, high) = task["simulation"], millijoules(task["energy"])
        dram, moved = simulation["dram"], simulation["dram_bytes"]
        how = METHODS[simulation["backend"]]
        head += [
            f"{shown(simulation['latency_ms'])} ms{name}: latency of a frame, {how}",
            f"{typical} mJ{name}: energy of a frame, {METHODS.get(task['energy']['method'], task['energy']['method'])}",
            f"{shown(100 * simulation['mac_utilisation'])} %{name}: useful work",
        ]
        if low != high:
            head.append(f", {low} … {high}")
        out[f"Task {name}"] = texts = [
            f"{shown(task['cycles'])} cycles a frame on {config['name']} at {shown(config['clock_mhz'])} MHz, {how}, "
            f"mean of {images(simulation)}",
            f"{shown(simulation['macs'])} multiply-accumulates",
            f"{shown(dram['bytes_per_cycle'])} bytes a cycle, first word after {shown(dram['latency_cycles'])} cycles",
            f"{shown(moved['weights'])} bytes of weights, {shown(moved['instructions'])} of instructions, "
            f"{shown(moved['activations'])} of images and results",
        ]
        texts += [f"{step['name']} {shown(step['host_ms'])} ms" for step in task["host"]]
        if task["power"]:
            head.append(f"({task['power']['source']})")
            low, typical, high = millijoules(task["energy_estimate"])
            texts += [f"{shown(task['power']['watts'])} W, from {task['power']['source']}",
                      f"says {typical} mJ a frame ({low} … {high})"]  # fmt: skip
        if task["accuracy"]:
            texts.append(f"the same {images(task['accuracy'])}")
    out["Beside other ways to run it"] = [t["cpu_missing"] for t in values["tasks"].values() if t["cpu_missing"]]
    out["How these figures came about"] = list(values["methods"].values())
    return out


WORDS = re.compile(r"int8|10⁹|W8A8")  #: words with digits in them that are no figures


def check_page(folder: Path) -> int:
    """Hold all figures of a report's page to its JSON; returns how many cells of tables there are."""
    values = json.loads((folder / "report.json").read_text())
    page = Page((folder / "report.html").read_text())
    texts, tables = expected_texts(values), expected_tables(values)
    assert {section.title for section in page.sections} == set(texts) == {"", *tables}
    cells = 0
    for section in page.sections:
        mine = tables.get(section.title, {})
        assert sorted(table.title for table in section.tables) == sorted(mine)
        for table in section.tables:
            cells += check_table(table, *mine[table.title])
        rest = "\n".join(section.texts)
        for text in texts[section.title]:
            assert text in rest, (section.title, text)
        for text in sorted(texts[section.title], key=len, reverse=True):
            rest = rest.replace(text, "")
        assert not re.search(r"\d", WORDS.sub("", rest)), (section.title, rest)  # and no other figure
    check_plots(folder, values)
    return cells


def check_plots(folder: Path, values: Row) -> None:
    """The numbers written into plots."""
    machines = values["machines"]
    known = [row for row in machines if row["mj"]]
    expected = {
        "latency": [row["ms"] for row in machines],
        "energy": [row["mj"][1] for row in known],
        "efficiency": [row["mj"][1] * 1e9 / row["macs"] for row in known],
    }
    for name, of in expected.items():
        want = {f"value-{n}": f"{value:.3g}" for n, value in enumerate(of)}
        assert plot_values((folder / f"{name}.svg").read_text()) == want
    for name, task in values["tasks"].items():
        if task["experts"]:
            want = {
                f"value-{y}-{x}": f"{tokens:.0f}"
                for y, gate in enumerate(task["experts"])
                for x, tokens in enumerate(gate["tokens"])
            }
            assert plot_values((folder / f"{name}-experts.svg").read_text()) == want


def check_sources(folder: Path) -> None:
    """Each published figure shows its source, each of ours its clock, configuration and method: tables and plots."""
    values = json.loads((folder / "report.json").read_text())
    config = values["config"]
    for row in values["machines"]:
        assert row["source"]
        if row["method"] in ("rtl", "cycle"):
            assert row["clock_mhz"] == config["clock_mhz"]
            assert values["config_digest"] in row["configuration"]
    for name in ("latency", "energy", "efficiency"):
        text = (folder / f"{name}.svg").read_text()
        for row in values["machines"]:
            if row["method"] == "published" and (name == "latency" or row["mj"]):
                short = row["source"].removesuffix(", its table").partition(", as in the tables")[0]
                label = f"{row['name']}, {row['network']} ({row['macs'] / 1e9:.2g} GMAC), {row['board']}: {short}"
                assert label.replace("'", "&apos;") in text or label in text, label
            elif row["method"] in METHODS:
                how = row["method"] if name == "latency" else row["energy_method"]
                label = f"{row['name']}, {row['network']} ({row['macs'] / 1e9:.2g} GMAC), {row['clock_mhz']:g} MHz: "
                assert f"{label}{METHODS.get(how, how)}".replace("'", "&apos;") in text.replace("'", "&apos;")
