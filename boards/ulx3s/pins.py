"""Where the design's ports are on the board: version 2 and 3 of the ULX3S, device in CABGA381.

From the board's own constraints, ulx3s_v20.lpf of the repository emard/ulx3s.
"""

from moevit.boards.ulx3s.gateware.clock import OSCILLATOR_MHZ

#: port: (site, attributes beside the voltage)
PINS: dict[str, tuple[str, str]] = {
    "clk_25mhz": ("G2", "PULLMODE=NONE"),
    "ftdi_rxd": ("L4", "PULLMODE=UP DRIVE=4"),
    "ftdi_txd": ("M1", "PULLMODE=UP"),
    "fire1": ("R1", "PULLMODE=DOWN"),
    "wifi_gpio0": ("L2", "PULLMODE=NONE DRIVE=4"),
    **{
        f"led[{i}]": (site, "PULLMODE=NONE DRIVE=4")
        for i, site in enumerate(("B2", "C2", "C1", "D2", "D1", "E2", "E1", "H3"))
    },
}


def constraints() -> str:
    """The constraints as nextpnr reads them (LPF)."""
    lines = [
        "BLOCK RESETPATHS;",
        "BLOCK ASYNCPATHS;",
        "SYSCONFIG CONFIG_IOVOLTAGE=3.3 COMPRESS_CONFIG=ON MCCLK_FREQ=62 "
        "MASTER_SPI_PORT=DISABLE SLAVE_SPI_PORT=DISABLE SLAVE_PARALLEL_PORT=DISABLE;",
        f'FREQUENCY PORT "clk_25mhz" {OSCILLATOR_MHZ} MHZ;',
    ]
    for port, (site, attributes) in PINS.items():
        lines.append(f'LOCATE COMP "{port}" SITE "{site}";')
        lines.append(f'IOBUF PORT "{port}" {attributes} IO_TYPE=LVCMOS33;')
    return "\n".join(lines) + "\n"
