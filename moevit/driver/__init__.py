"""The host's side of a machine: one `Device` over links to boards, and to the RTL simulation.

`link` says what a link is, `device` what is done with one, `arena` and `power` are what several links share. The link
to the simulation is `moevit.sim.device`.
"""

from moevit.driver.device import Device, Run
from moevit.driver.link import Buffer, Link

__all__ = ["Buffer", "Device", "Link", "Run"]
