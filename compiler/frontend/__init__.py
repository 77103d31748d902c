"""The front end: from ONNX to the float graph, by data flow, not by the names or forms an exporter chose."""

from moevit.compiler.frontend.check import check_against_onnxruntime
from moevit.compiler.frontend.load import load

__all__ = ["check_against_onnxruntime", "load"]
