"""Dividing a model between the accelerator and the host."""

from moevit.compiler.partition.plan import Plan, plan, stored
from moevit.compiler.partition.unfit import unfit

__all__ = ["Plan", "plan", "stored", "unfit"]
