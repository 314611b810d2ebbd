"""Discrete-event replay of a plan against a locking model on a machine."""

from __future__ import annotations

from mmreplay.address_space.plan import Plan
from mmreplay.engine.result import LockStats, Options, Result
from mmreplay.locking.model import LockingModel
from mmreplay.machine.profile import Machine

__all__ = ["LockStats", "Options", "Result", "simulate"]


def simulate(plan: Plan, model: LockingModel, machine: Machine, options: Options) -> Result:
    """Replay ``plan`` once; equal inputs and seed give equal results.

    Raises :class:`~mmreplay.errors.UserError` where the machine lacks a cost that the
    model names, the model lacks a program that the plan needs, or the options do not
    fit the machine.
    """
    from mmreplay.engine.compiled import simulate_compiled  # numba loads only when it runs

    return simulate_compiled(plan, model, machine, options)
