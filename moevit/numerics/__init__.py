"""Integer numerics of the machine: the one definition of every operator and table.

Each module holds the NumPy function that the reference and the simulators call, the tables that the RTL is
generated from, and the constants (widths, fraction bits) that both share. Nothing here knows of tiles,
addresses or instructions. Error bounds against the float functions are stated in ``docs/numerics.md`` and
held by ``tests/numerics``.
"""
