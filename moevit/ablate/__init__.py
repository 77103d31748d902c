"""Each of the machine's techniques against the plain way, measured where the machine can do both.

One module per technique; each has `run(subject) -> Technique`. They measure and return, `moevit.cli.ablate` prints
and `plot` draws.
"""
