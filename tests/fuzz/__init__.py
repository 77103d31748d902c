"""Models that nobody has written: each compiles and agrees with onnxruntime, or is refused properly."""
