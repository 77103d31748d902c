"""What place and route says about the design: used cells, clocks, and whether they are met."""

from typing import Any

from moevit.boards.ulx3s.design import Design

#: nextpnr's names of what a report lists, and ours
CELLS = {"TRELLIS_COMB": "LUT4", "TRELLIS_FF": "FF", "DP16KD": "EBR", "MULT18X18D": "MULT18X18D", "EHXPLLL": "PLL"}
#: what the LFE5U-85F has (FPGA-DS-02012), by nextpnr's names
DEVICE = {"TRELLIS_COMB": 83_640, "TRELLIS_FF": 83_640, "DP16KD": 208, "MULT18X18D": 156, "EHXPLLL": 4}
#: LUTs that Yosys' cells take: a carry cell has two, a small memory four and two that write it
LUTS = {"LUT4": 1, "CCU2C": 2, "TRELLIS_DPR16X4": 6}


def report(design: Design, timing: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
    """The report as plain values.

    Parameters
    ----------
    design : what was built
    timing : nextpnr's report
    about : tool versions, seed, and seconds of each step
    """
    clocks = {
        _plain(name): {
            "fmax_mhz": round(values["achieved"], 2),
            "wanted_mhz": round(values["constraint"], 2),
            "met": values["achieved"] >= values["constraint"],
        }
        for name, values in timing["fmax"].items()
    }
    used = {ours: timing["utilization"].get(theirs, {"used": 0, "available": 0}) for theirs, ours in CELLS.items()}
    return {
        "board": "ulx3s",
        "device": design.config.device,
        "config": design.config.name,
        "config_digest": f"{design.config.digest:016x}",
        "clock_mhz": design.clock_mhz,
        "memory_bytes": design.memory_bytes,
        "baud": design.baud,
        "clocks": clocks,
        "utilisation": {
            name: cell | {"percent": round(100 * cell["used"] / cell["available"], 1) if cell["available"] else 0.0}
            for name, cell in used.items()
        },
        "critical_paths": [_path(path) for path in timing.get("critical_paths", [])],
        **about,
    }


def packed(counts: dict[str, int]) -> dict[str, dict[str, int]]:
    """Used and available cells as nextpnr reports them, from Yosys' counts: before it packs, and its own constants."""
    used = dict.fromkeys(DEVICE, 0) | {name: n for name, n in counts.items() if name in DEVICE}
    used["TRELLIS_COMB"] = sum(n * counts.get(name, 0) for name, n in LUTS.items())
    return {name: {"used": n, "available": DEVICE[name]} for name, n in used.items()}


def exceeded(values: dict[str, Any]) -> list[str]:
    """What the device has too little of, in words."""
    return [
        f"{name} {cell['used']:,} of {cell['available']:,}"
        for name, cell in values["utilisation"].items()
        if cell["used"] > cell["available"]
    ]


def missed(values: dict[str, Any]) -> list[str]:
    """Clocks that are too slow, and whether the machine's is missing, each in words."""
    out = [
        f"clock {name} reaches {clock['fmax_mhz']:g} MHz, not {clock['wanted_mhz']:g} MHz"
        for name, clock in values["clocks"].items()
        if not clock["met"]
    ]
    fastest = max((clock["wanted_mhz"] for clock in values["clocks"].values()), default=0.0)
    if fastest < values["clock_mhz"]:
        out.append(f"nextpnr has looked at no clock of {values['clock_mhz']:g} MHz, but {fastest:g} MHz at most")
    return out


def _plain(name: str) -> str:
    """A clock net's name without what nextpnr puts before and behind it."""
    return name.removeprefix("$glbnet$").removesuffix("$TRELLIS_IO_IN")


def _path(path: dict[str, Any]) -> dict[str, Any]:
    steps = path["path"]
    return {
        "from": path["from"],
        "to": path["to"],
        "ns": round(sum(step["delay"] for step in steps), 2),
        "logic_ns": round(sum(step["delay"] for step in steps if step["type"] != "routing"), 2),
        "start": steps[0]["to"]["cell"] if steps else "",
        "end": steps[-1]["to"]["cell"] if steps else "",
    }


def lines(values: dict[str, Any]) -> list[str]:
    """The report for people."""
    out = [f"ULX3S, {values['device']}: configuration {values['config']}, digest {values['config_digest']}", ""]
    out.append(f"{'cells':14} {'used':>8} {'of':>8}")
    for name, cell in values["utilisation"].items():
        out.append(f"{name:14} {cell['used']:>8,} {cell['available']:>8,} {cell['percent']:>6.1f} %")
    out += ["", f"{'clock':24} {'reached':>12} {'wanted':>12}"] if values["clocks"] else []
    for name, clock in values["clocks"].items():
        met = "met" if clock["met"] else "MISSED"
        out.append(f"{name:24} {clock['fmax_mhz']:>8.2f} MHz {clock['wanted_mhz']:>8.2f} MHz  {met}")
    out += ["", "longest paths"] if values["critical_paths"] else []
    for path in values["critical_paths"]:
        out.append(
            f"  {path['ns']:>6.2f} ns, {path['logic_ns']:.2f} of them logic: {path['start']} → {path['end']} "
            f"({path['from']} → {path['to']})"
        )
    versions = ", ".join(f"{name} {version}" for name, version in values["tools"].items())
    out += ["", f"seed {values['seed']}; {versions}" if "seed" in values else versions]
    out.append("seconds: " + ", ".join(f"{name} {seconds:.0f}" for name, seconds in values["seconds"].items()))
    return out
