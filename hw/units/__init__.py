"""The units of the machine: one component per file, beside the NumPy function each equals."""
