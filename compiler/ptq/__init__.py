"""Post-training quantisation that looks at the data: how formats are chosen, and what they cost.

:func:`tune` is what the compiler calls.
"""

from moevit.compiler.ptq.tune import Tuned, tune

__all__ = ["Tuned", "tune"]
