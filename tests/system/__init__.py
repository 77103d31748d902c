"""Tests of the whole machine at its pins: cocotb modules, run by `test_system.py`, share `system.bench`."""
