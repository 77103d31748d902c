"""Configurations: what is refused, that JSON comes back, and that digests stay."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moevit.config import CONFIGS, AcceleratorConfig, get_config
from moevit.errors import ConfigError

TINY = CONFIGS["tiny"]

#: Containers and hardware know each other by these.
GOLDEN_DIGESTS = {
    "tiny": 0xE64C824C278D3502,
    "zcu104": 0x71E7D731C2EC68B7,
    "square": 0xCC483C3249E93458,
    "wide": 0x5E14284D5A1A45BE,
}


@pytest.mark.parametrize("name", GOLDEN_DIGESTS)
def test_digests_stay(name):
    assert CONFIGS[name].digest == GOLDEN_DIGESTS[name]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_json_comes_back(config, tmp_path):
    values = json.loads(json.dumps(config.to_dict()))
    assert AcceleratorConfig.from_dict(values) == config
    path = tmp_path / "own.json"
    path.write_text(json.dumps(values))
    assert get_config(str(path)) == config
    assert get_config(str(path)).digest == config.digest


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_named_configurations(config):
    assert get_config(config.name) is config
    assert CONFIGS[config.name] is config
    assert config.macs_per_cycle == config.rows * config.columns * config.depth
    assert config.operand_word_bytes == config.columns * config.depth
    assert (config.post_word_bytes, config.norm_word_bytes) == (8 * config.columns, 4 * config.columns)
    assert config.axi_bytes * 8 == config.axi_data_width
    assert config.key_groups * config.depth == config.columns
    assert config.max_key_tiles * config.columns == config.tile_depth


def test_digest_is_of_the_hardware_only():
    others = {TINY.digest}
    changes = {
        "rows": 8, "columns": 16, "depth": 8, "operand_words": 100, "activation_words": 100, "tile_depth": 64,
        "post_words": 5, "norm_words": 5, "queue_entries": 8, "weight_ports": 2, "axi_data_width": 64,
        "axi_address_width": 32, "packed_macs": True,
    }  # fmt: skip
    for name, value in changes.items():
        others.add(dataclasses.replace(TINY, **{name: value}).digest)
    assert len(others) == len(changes) + 1
    same = dataclasses.replace(TINY, name="mine", clock_mhz=1.0, device="xyz")
    assert same.digest == TINY.digest
    assert {*changes, "name", "clock_mhz", "device"} == {f.name for f in dataclasses.fields(AcceleratorConfig)}


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TINY.rows = 8


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rows": 0}, "rows = 0 must be a positive integer"),
        ({"rows": True}, "rows = True must be a positive integer"),
        ({"rows": 4.0}, r"rows = 4\.0 must be a positive integer"),
        ({"rows": 3}, "rows = 3 must be a power of two"),
        ({"rows": 1}, "rows = 1 must be 2 … 64"),
        ({"rows": 128, "columns": 128}, "rows = 128 must be 2 … 64"),
        ({"columns": 12}, "columns = 12 must be a power of two"),
        ({"columns": 2}, "columns = 2 must be a multiple of rows"),
        ({"depth": 1}, "depth = 1 must be at least 2"),
        ({"depth": 16}, "depth = 16 must be at least 2 and divide columns"),
        ({"axi_data_width": 16}, "axi_data_width = 16 must be 32 … 512"),
        ({"axi_data_width": 1024}, "axi_data_width = 1024 must be 32 … 512"),
        ({"weight_ports": 4}, "weight_ports = 4 4 . columns bytes must be a multiple"),
        ({"depth": 2, "weight_ports": 2}, "weight_ports = 2 columns . depth bytes must be a multiple"),
        ({"activation_words": 11}, "activation_words = 11 must be even"),
        ({"operand_words": 65537}, "operand_words = 65537 must be at most 65536"),
        ({"activation_words": 262146}, "activation_words = 262146 must be at most 262144"),
        ({"tile_depth": 16384}, "tile_depth = 16384 must be at most 8192"),
        ({"post_words": 4097}, "post_words = 4097 must be at most 4096"),
        ({"norm_words": 4097}, "norm_words = 4097 must be at most 4096"),
        ({"queue_entries": 0}, "queue_entries = 0 must be a positive integer"),
        ({"queue_entries": 100}, "queue_entries = 100 must be a power of two"),
        ({"queue_entries": 65536}, "queue_entries = 65536 must be at most 32768"),
        ({"tile_depth": 100}, "tile_depth = 100 must be a multiple of columns"),
        ({"axi_address_width": 31}, "axi_address_width = 31 must be 32 … 64"),
        ({"axi_address_width": 65}, "axi_address_width = 65 must be 32 … 64"),
        ({"clock_mhz": 0.0}, r"clock_mhz = 0\.0 must be positive"),
    ],
)
def test_refused(changes, said):
    with pytest.raises(ConfigError, match=f"configuration 'tiny': {said}"):
        dataclasses.replace(TINY, **changes)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([1], "must be a JSON object"),
        ({}, "missing fields .*'rows'"),
        (TINY.to_dict() | {"colour": "red"}, r"unknown fields \['colour'\], missing fields \[\]"),
        (TINY.to_dict() | {"rows": "4"}, "rows must be int, not '4'"),
        (TINY.to_dict() | {"rows": True}, "rows must be int, not True"),
        (TINY.to_dict() | {"packed_macs": 1}, "packed_macs must be bool, not 1"),
        (TINY.to_dict() | {"device": None}, "device must be str, not None"),
        (TINY.to_dict() | {"clock_mhz": True}, "clock_mhz must be float, not True"),
    ],
)
def test_refused_json(values, said):
    with pytest.raises(ConfigError, match=said):
        AcceleratorConfig.from_dict(values)


def test_a_whole_number_is_a_clock():
    assert AcceleratorConfig.from_dict(TINY.to_dict() | {"clock_mhz": 100}) == TINY


def test_files_that_hold_no_configuration(tmp_path):
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    for name, said in ((str(broken), "cannot read"), (str(tmp_path / "none.json"), "cannot read"),
                       ("tinny", "choose one of tiny, zcu104")):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            get_config(name)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from([f.name for f in dataclasses.fields(AcceleratorConfig)]), json_values)
def test_any_value_is_accepted_or_a_configuration_error(name, value):
    try:
        config = AcceleratorConfig.from_dict(TINY.to_dict() | {name: value})
    except ConfigError:
        return
    assert config.to_dict() == TINY.to_dict() | {name: value}
