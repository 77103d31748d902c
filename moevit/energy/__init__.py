"""What an inference costs in energy: counted events times energy per event, and power times time.

An estimate, and labelled as one wherever it is shown: every constant has a source and a range, and so has every sum.
"""
