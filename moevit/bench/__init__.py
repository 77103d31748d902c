"""The standing workloads on the standing configurations: exact cycles, and what bounds them.

`workloads` names them, `run` compiles and runs one, `bound` says how fast it could be. Networks without a shipped model
are built as graphs with seeded random weights (`vit`). That is as good as a trained network: cycles depend on shapes,
and of the values only on which experts the tokens go to (`gates`). Nothing here prints; `moevit.cli.bench` does.
"""
