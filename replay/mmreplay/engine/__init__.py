"""Discrete-event replay of a plan against a locking model on a machine."""

from __future__ import annotations

from mmreplay.address_space.plan import Plan
from mmreplay.engine.result import LockStats, Options, Result
from mmreplay.locking.model import LockingModel
from mmreplay.machine.profile import Machine

__all__ = ["LockStats", "Options", "Replay", "Result", "simulate"]


class Replay:
    """A plan and a model, made ready once and replayed as often as wanted.

    Getting ready costs about as much as one replay.  ``run`` may be called from several
    threads at once: the compiled loop holds no GIL and changes nothing here.

    Raises :class:`~mmreplay.errors.UserError` where the model lacks a program that the
    plan needs.
    """

    def __init__(self, plan: Plan, model: LockingModel) -> None:
        from mmreplay.engine.prepared import prepare_replay  # numba loads only when it runs

        self._prepared = prepare_replay(plan, model)

    def run(self, machine: Machine, options: Options) -> Result:
        """One replay; equal inputs and seed give equal results.

        Raises :class:`~mmreplay.errors.UserError` where the machine lacks a cost that the
        model names, or the options do not fit the machine.
        """
        from mmreplay.engine.compiled import run_compiled

        return run_compiled(self._prepared, machine, options)


def simulate(plan: Plan, model: LockingModel, machine: Machine, options: Options) -> Result:
    """Replay ``plan`` once (:class:`Replay`)."""
    return Replay(plan, model).run(machine, options)
