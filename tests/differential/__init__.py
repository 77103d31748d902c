"""Random programs, run on the instruction-level simulator and on the RTL."""
