"""`moevit report`: a page with latency, energy and accuracy of a container, beside what else there is."""

from moevit.cli.report.command import command

__all__ = ["command"]
