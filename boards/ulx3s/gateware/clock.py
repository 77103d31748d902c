"""The machine's clock and reset, from the board's oscillator through a PLL."""

from dataclasses import dataclass

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.cdc import ResetSynchronizer
from amaranth.lib.wiring import In

from moevit.errors import ConfigError

OSCILLATOR_MHZ = 25
VCO_MHZ = range(400, 801)  #: what the oscillator of an EHXPLLL can do (FPGA-TN-02200, ECP5 sysCLOCK PLL)
PHASE_DETECTOR_MHZ = range(8, 401)
MAX_DIVIDER = 128


@dataclass(frozen=True)
class PllDividers:
    """``clock = oscillator / input * feedback``, and ``clock * output`` is the frequency of the VCO."""

    input: int
    feedback: int
    output: int


def dividers(clock_mhz: float) -> PllDividers:
    """Dividers that give exactly this clock. Raises ConfigError where there are none."""
    for divide in range(1, OSCILLATOR_MHZ // PHASE_DETECTOR_MHZ.start + 1):
        feedback = clock_mhz * divide / OSCILLATOR_MHZ
        if feedback != int(feedback) or not 1 <= feedback <= MAX_DIVIDER:
            continue
        # In the middle of the VCO's range, which is where it is stable at any temperature.
        middle = (VCO_MHZ.start + VCO_MHZ.stop) // 2
        output = round(middle / clock_mhz)
        if 1 <= output <= MAX_DIVIDER and VCO_MHZ.start <= clock_mhz * output < VCO_MHZ.stop:
            return PllDividers(divide, int(feedback), output)
    raise ConfigError(
        f"no PLL setting makes {clock_mhz:g} MHz of the board's {OSCILLATOR_MHZ} MHz",
        mend="choose a clock_mhz that is a multiple of 25 / 3, 25 / 2 or 25",
    )


class Clock(wiring.Component):
    """Drives the domain ``sync``, which the module above defines.

    Parameters
    ----------
    clock_mhz : of ``sync``

    Members
    -------
    oscillator : In(1)
    reset : In(1), asynchronous

    ``sync`` is held in reset until the PLL has locked.
    """

    def __init__(self, clock_mhz: float):
        self.dividers = dividers(clock_mhz)
        super().__init__({"oscillator": In(1), "reset": In(1)})

    def elaborate(self, platform):
        m = Module()
        d = self.dividers
        locked = Signal()
        clock = ClockSignal("sync")
        m.submodules.pll = Instance(
            "EHXPLLL",
            ("a", "ICP_CURRENT", "12"),
            ("a", "LPF_RESISTOR", "8"),
            ("a", "MFG_ENABLE_FILTEROPAMP", "1"),
            ("a", "MFG_GMCREF_SEL", "2"),
            p_PLLRST_ENA="DISABLED", p_INTFB_WAKE="DISABLED", p_STDBY_ENABLE="DISABLED", p_DPHASE_SOURCE="DISABLED",
            p_OUTDIVIDER_MUXA="DIVA", p_OUTDIVIDER_MUXB="DIVB", p_OUTDIVIDER_MUXC="DIVC", p_OUTDIVIDER_MUXD="DIVD",
            p_CLKI_DIV=d.input, p_CLKFB_DIV=d.feedback, p_FEEDBK_PATH="CLKOP",
            p_CLKOP_ENABLE="ENABLED", p_CLKOP_DIV=d.output, p_CLKOP_CPHASE=(d.output - 1) // 2, p_CLKOP_FPHASE=0,
            i_RST=0, i_STDBY=0, i_CLKI=self.oscillator, i_CLKFB=clock,
            i_PHASESEL0=0, i_PHASESEL1=0, i_PHASEDIR=1, i_PHASESTEP=1, i_PHASELOADREG=1, i_PLLWAKESYNC=0, i_ENCLKOP=0,
            o_CLKOP=clock, o_LOCK=locked,
        )  # fmt: skip
        m.submodules.reset = ResetSynchronizer(~locked | self.reset, domain="sync")
        return m
