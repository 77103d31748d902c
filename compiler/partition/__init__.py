"""Dividing a model between the accelerator and the host."""

from moevit.compiler.partition.plan import Plan, plan, stored

__all__ = ["Plan", "plan", "stored"]
