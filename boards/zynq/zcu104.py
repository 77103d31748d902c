"""The ZCU104 evaluation kit (UG1267): XCZU7EV, 2 GB of DDR4 at the processing system."""

from moevit.boards.zynq import Memory, ZynqBoard

BOARD = ZynqBoard(
    name="zcu104",
    title="ZCU104 evaluation kit",
    part="xczu7ev-ffvc1156-2-e",
    board_part="*:zcu104:*",
    memory=(Memory(name="DDR_LOW", offset=0, size=2 << 30),),
    models=("ZynqMP ZCU104", "Xilinx Zynq ZCU104"),
    sensors=("ina226_u183",),
    power="the board's 12 V input",
    free_license=True,
)
