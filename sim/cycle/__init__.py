"""The cycle back-end: predicts how many cycles the machine takes for a program, without running data.

It follows what the units say of themselves: when each takes an instruction, a row tile, a burst or a weight word, from
their latencies, throughputs and queues. It works on whole row tiles and bursts, not on cycles.
"""

from moevit.sim.cycle.machine import Prediction, even_lengths, predict

__all__ = ["Prediction", "even_lengths", "predict"]
