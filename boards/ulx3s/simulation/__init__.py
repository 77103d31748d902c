"""The whole design under Verilator, as it was generated or as it was synthesised, with its serial line as a port."""
