"""Vivado's commands as far as the scripts use them: their switches and how many arguments they take (UG835)."""

from dataclasses import dataclass, field
from typing import NoReturn

COMMON = frozenset({"-quiet", "-verbose"})


class VivadoError(Exception):
    """What Vivado would stop the script with."""


def refuse(what: str) -> NoReturn:
    """Stop the script."""
    raise VivadoError(what)


@dataclass(frozen=True)
class Command:
    """What may follow a command's name.

    flags : switches without a value
    options : switches with one
    least, most : how many other arguments there are
    required : switches that must be there
    """

    flags: frozenset[str] = frozenset()
    options: frozenset[str] = frozenset()
    least: int = 0
    most: int = 0
    required: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Call:
    """A command as it was written."""

    name: str
    options: dict[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()


def _command(
    flags: str = "", options: str = "", least: int = 0, most: int | None = None, required: str = ""
) -> Command:
    def switches(names: str) -> frozenset[str]:
        return frozenset(f"-{name}" for name in names.split())

    return Command(switches(flags), switches(options), least, least if most is None else most, switches(required))


MANY = 1 << 20
_REPORT = "file name"

COMMANDS: dict[str, Command] = {
    "version": _command("short"),
    "get_parts": _command("regexp nocase", "filter of_objects", 0, 1),
    "get_board_parts": _command("regexp nocase latest_file_version latest_hw_revision", "filter of_objects", 0, 1),
    "create_project": _command("force in_memory ip rtl_kernel", "part", 0, 2),
    "current_project": _command(least=0, most=1),
    "current_fileset": _command("constrset simset srcset blockset", least=0, most=1),
    "add_files": _command("norecurse force scan_for_includes", "fileset of_objects copy_to", 0, 1),
    "get_files": _command("regexp nocase all references", "filter of_objects compile_order used_in", 0, 1),
    "update_compile_order": _command("force_gui", "fileset"),
    "set_property": _command("", "name dict objects", 1, 3),
    "get_property": _command("min max", "", 2, 2),
    "create_bd_design": _command("", "dir cell bdsource boundary_from_container", 1),
    "create_bd_cell": _command("", "vlnv type reference revision", 1, 1, "type"),
    "get_bd_cells": _command("regexp hierarchical include_replicated_objs", "filter of_objects", 0, 1),
    "get_bd_pins": _command("regexp hierarchical", "filter of_objects", 0, 1),
    "get_bd_intf_pins": _command("regexp hierarchical", "filter of_objects", 0, 1),
    "get_bd_addr_spaces": _command("regexp hierarchical", "filter of_objects", 0, 1),
    "get_bd_addr_segs": _command("regexp hierarchical excluded addressed unaddressed", "filter of_objects", 0, 1),
    "apply_bd_automation": _command("", "rule config dict opts", 1, 1, "rule"),
    "connect_bd_net": _command("", "net boundary_type", 1, MANY),
    "connect_bd_intf_net": _command("auto_align", "intf_net boundary_type", 2, 2),
    "assign_bd_address": _command(
        "force boundary_only external with_name external_with_name",
        "target_address_space offset range import_from_file export_to_file export_gui_to_file combine_segments", 0, 1,
    ),
    "validate_bd_design": _command("force", "design include_pfm"),
    "save_bd_design": _command(least=0, most=1),
    "generate_target": _command("force", "", 2, 2),
    "make_wrapper": _command("top testbench inst_template import force", "files fileset", 0, 0, "files"),
    "get_runs": _command("regexp nocase", "filter of_objects", 0, 1),
    "launch_runs": _command(
        "scripts_only next_step email_all force",
        "jobs lsf sge cluster_configuration dir to_step host remote_cmd email_to pre_launch_script post_launch_script "
        "custom_script", 1, MANY,
    ),
    "wait_on_runs": _command("", "timeout exit_condition", 1, MANY),
    "open_run": _command("", "name pr_config", 1, 1),
    "close_design": _command(),
    "report_utilization": _command(
        "append return_string hierarchical hierarchical_percentages packthru slr spreadsheet_table",
        f"{_REPORT} pblocks evaluate_pblock exclude_child_pblocks exclude_non_assigned cells hierarchical_depth "
        "hierarchical_min_primitive_count spreadsheet_file omit_locs",
    ),
    "report_timing_summary": _command(
        "check_timing_verbose setup hold no_check_timing no_header append return_string warn_on_violation "
        "datasheet unique_pins routable_nets no_detailed_paths report_unconstrained",
        f"{_REPORT} delay_type max_paths nworst slack_lesser_than path_type input_pins cells rpx significant_digits",
    ),
    "report_route_status": _command(
        "return_nets return_string append list_all_nets show_all dump_routes has_routing ignore_cache",
        "file of_objects route_type boolean_check to_load",
    ),
    "report_power": _command("no_propagation append return_string advisory", f"{_REPORT} hier hierarchical_depth rpx "
                             "format xpe"),
    "report_drc": _command("append no_waivers return_string upgrade_cw quiet", f"{_REPORT} checks ruledecks "
                           "of_objects rpx internal waived"),
    "report_methodology": _command("append no_waivers return_string", f"{_REPORT} checks of_objects slack_lesser_than "
                                   "rpx ruledecks"),
    "write_hw_platform": _command(
        "fixed force include_bit include_sim_content minimal hw hw_emu static", "rp rm", 0, 1
    ),
}  # fmt: skip


def parse(name: str, words: tuple[str, ...]) -> Call:
    """A command's words, taken apart.

    Raises
    ------
    VivadoError : it has no such switch, or takes another number of arguments
    """
    command = COMMANDS[name]
    options: dict[str, str] = {}
    arguments: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word in command.options:
            if not rest:
                refuse(f"[Common 17-157] {name}: no value after {word}")
            options[word] = rest.pop(0)
        elif word in command.flags | COMMON:
            options[word] = ""
        elif word.startswith("-") and not word[1:2].isdigit():
            refuse(f"[Common 17-170] {name}: unknown option '{word}'")
        else:
            arguments.append(word)
    if missing := sorted(command.required - set(options)):
        refuse(f"[Common 17-163] {name}: missing {', '.join(missing)}")
    least = 0 if options.keys() & {"-dict", "-of_objects"} else command.least
    if not least <= len(arguments) <= command.most:
        refuse(f"[Common 17-165] {name}: {len(arguments)} arguments, not {least} … {command.most}: {arguments[:5]}")
    return Call(name, options, tuple(arguments))
