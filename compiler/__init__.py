"""The compiler: from an ONNX vision transformer to a program container.

ONNX is read into a graph that is verified between passes, quantised with calibration data, scheduled, given
memory and dependency waits, and encoded; a hazard checker proves each program safe from its instructions
alone.
"""
