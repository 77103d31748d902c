"""The ZCU102 evaluation kit (UG1182): XCZU9EG, 4 GB of DDR4 at the processing system."""

from moevit.boards.zynq import Memory, ZynqBoard

BOARD = ZynqBoard(
    name="zcu102",
    title="ZCU102 evaluation kit",
    part="xczu9eg-ffvb1156-2-e",
    board_part="*:zcu102:*",
    # Of 4 GB the upper half lies above 32 GB.
    memory=(
        Memory(name="DDR_LOW", offset=0, size=2 << 30),
        Memory(name="DDR_HIGH", offset=0x8_0000_0000, size=2 << 30),
    ),
    models=("ZynqMP ZCU102", "Xilinx Zynq ZCU102"),
    sensors=("ina226_u79", "ina226_u81"),
    power="the programmable logic: VCCINT and VCCBRAM",
    free_license=False,
)
