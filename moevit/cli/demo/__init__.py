"""`make demo`: the shipped two-task M³ViT, from ONNX to the simulated Verilog, on real scenes.

Compiles both tasks into one container, runs all committed scenes on the instruction-level simulator and some of
them on the verilated machine with every tensor compared, and shows what came out beside onnxruntime's answers.
Run it as ``python -m moevit.cli.demo``.
"""
