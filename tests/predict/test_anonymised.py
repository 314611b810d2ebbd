"""Predictions and replays of an anonymised trace are those of the trace itself."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mmreplay.importers.registry import import_trace
from mmreplay.predict import api
from mmreplay.report.writers import prediction_object, replay_object
from mmreplay.resources import datasets_dir
from mmreplay.trace.anonymise import Replaced, anonymise
from mmreplay.trace.store import Trace

RECORDING = datasets_dir("traces") / "node-minify-workers" / "perf.data"


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trace, Trace, Replaced]:
    """The shipped recording as it is and anonymised."""
    folder = tmp_path_factory.mktemp("traces")
    own = import_trace(RECORDING, folder / "own.mmt")
    shared, replaced = anonymise(own, folder / "shared.mmt")
    shared.validate()
    return own, shared, replaced


def lines(found: dict[str, Any], new: dict[str, str]) -> list[str]:
    """The JSON with thread names renamed, less wall-clock figures and the trace's own name."""

    def renamed(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {k: renamed(v, k) for k, v in value.items() if k not in ("wall_s", "ops_per_s")}
        if isinstance(value, list):
            return [renamed(item, key) for item in value]
        if key == "trace":
            return ""
        return new.get(value, value) if isinstance(value, str) else value

    return json.dumps(renamed(found), indent=1).splitlines()


def test_predictions_are_identical(both: tuple[Trace, Trace, Replaced]) -> None:
    own, shared, replaced = both
    words = {"to_kernel": "linux-6.18", "from_kernel": "linux-6.1", "cores": [1, 4]}
    found = [
        prediction_object(api.predict(trace, threads="cores", seeds=2, **words))  # type: ignore[arg-type]
        for trace in (own, shared)
    ]
    assert lines(found[0], replaced.groups) == lines(found[1], {})


def test_replays_are_identical(both: tuple[Trace, Trace, Replaced]) -> None:
    own, shared, replaced = both
    found = [replay_object(api.replay(trace, kernel="linux-6.1")) for trace in (own, shared)]
    assert lines(found[0], replaced.groups) == lines(found[1], {})
