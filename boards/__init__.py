"""The boards: what turns a configuration into something that a particular FPGA board can run."""
