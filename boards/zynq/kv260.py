"""The Kria KV260 vision kit (UG1089): a K26 module (DS987) with 4 GB of DDR4 on its carrier."""

from moevit.boards.zynq import Memory, ZynqBoard

BOARD = ZynqBoard(
    name="kv260",
    title="Kria KV260 vision AI starter kit",
    part="xck26-sfvc784-2LV-c",
    board_part="*:kv260_som:*",
    connections="som240_1_connector xilinx.com:kv260_carrier:som240_1_connector:1.3",
    memory=(
        Memory(name="DDR_LOW", offset=0, size=2 << 30),
        Memory(name="DDR_HIGH", offset=0x8_0000_0000, size=2 << 30),
    ),
    models=("ZynqMP SMK-K26", "ZynqMP SM-K26", "ZynqMP KV260"),
    sensors=("ina260_u14",),
    power="the module's 5 V input",
    free_license=True,
)
