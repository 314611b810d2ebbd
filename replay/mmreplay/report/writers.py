"""Machine-readable output: JSON, CSV and Parquet of predictions and replays."""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from mmreplay.errors import UserError, require_no_device
from mmreplay.predict.prediction import REPORT_SCHEMA, Prediction, Replay, Row

FORMATS: Final = ("text", "json", "csv", "parquet")
#: Columns of CSV and Parquet: the stable keys of a row, then the additions that are scalars.
TABLE_COLUMNS: Final = tuple(
    name for name in Row.__dataclass_fields__ if name not in ("lock_share", "blame")
)


def prediction_object(prediction: Prediction) -> dict[str, Any]:
    """The JSON object of ``mmreplay predict``."""
    drift = prediction.drift
    return {
        "schema": REPORT_SCHEMA,
        "trace": prediction.trace,
        "from_kernel": prediction.from_kernel,
        "to_kernel": prediction.to_kernel,
        "machine": prediction.machine,
        "machine_basis": prediction.machine_basis,
        "recorded_cores": prediction.recorded_cores,
        "recorded_threads": prediction.recorded_threads,
        "scale_group": prediction.group,
        "placement": prediction.placement,
        "costs": prediction.costs,
        "headline": prediction.headline,
        "baseline_drift_ratio": drift.ratio,
        "baseline_drift_note": drift.note,
        "baseline_drift_trusted": drift.trusted,
        "baseline_drift_by_op": [asdict(kind) for kind in drift.kinds],
        "unattributed_share": prediction.unattributed_share,
        "scope": prediction.scope,
        "rows": [_row(row) for row in prediction.rows],
        "saturation": [asdict(point) for point in prediction.saturation],
        "processes": [asdict(process) for process in prediction.processes],
        "foreign_holders": [asdict(holder) for holder in prediction.foreign_holders],
        "notes": list(prediction.notes),
        "engine": {
            "wall_s": prediction.wall_s,
            "simulations": prediction.simulations,
            "ops_simulated": prediction.ops_simulated,
            "windows": prediction.windows,
            "window_ops": prediction.window_ops,
            "seeds": prediction.seeds,
        },
    }


def _row(row: Row) -> dict[str, Any]:
    values = {name: getattr(row, name) for name in TABLE_COLUMNS}
    values["lock_share"] = dict(row.lock_share)
    values["blame"] = [asdict(charge) for charge in row.blame]
    return values


def replay_object(replay: Replay) -> dict[str, Any]:
    """The JSON object of ``mmreplay replay``; its keys are a contract."""
    return {
        "schema": REPORT_SCHEMA,
        "trace": replay.trace,
        "kernel": replay.kernel,
        "machine": replay.machine,
        "cores": replay.cores,
        "threads": replay.threads,
        "ops": replay.ops,
        "scale_group": replay.group or None,
        "window_ns": replay.window_ns,
        "makespan_ns": replay.makespan_ns,
        "throughput_ops_per_s": replay.throughput_ops_per_s,
        "useful_work_rate": replay.useful_work_rate,
        "baseline_drift_ratio": replay.baseline_drift_ratio,
        "baseline_drift_note": replay.baseline_drift_note,
        "locks": replay.locks,
        "by_op": list(replay.by_op),
        "blame": list(replay.blame),
        "processes": [asdict(process) for process in replay.processes],
        "foreign_holders": [asdict(holder) for holder in replay.foreign_holders],
        "notes": list(replay.notes),
        "engine": {"wall_s": replay.wall_s, "ops_per_s": replay.ops_per_s},
    }


def to_json(value: dict[str, Any]) -> str:
    """Strict JSON (no NaN, no infinity), one object, ending in a newline."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def to_csv(prediction: Prediction) -> str:
    """One line per row; empty fields where a value is null."""
    return _table(prediction).write_csv()  # type: ignore[no-any-return]


def _table(prediction: Prediction) -> Any:
    import polars as pl

    kinds: dict[str, Any] = {}
    for name, field in Row.__dataclass_fields__.items():
        if name in TABLE_COLUMNS:
            text = str(field.type)
            kinds[name] = (
                pl.Int64 if text == "int" else pl.Float64 if "float" in text else pl.String
            )
    rows = [{name: getattr(row, name) for name in TABLE_COLUMNS} for row in prediction.rows]
    return pl.DataFrame(rows, schema=kinds)


def write_prediction(prediction: Prediction, form: str, output: str | None, text: str) -> None:
    """Write in ``form`` to ``output``, or to stdout; ``text`` is the text form.

    A file is written beside its place and renamed, so it is whole or absent.
    """
    check_output(form, output)
    if form == "parquet":
        assert output is not None
        import io

        buffer = io.BytesIO()
        _table(prediction).write_parquet(buffer, compression="zstd")
        write_file(Path(output), buffer.getvalue())
        return
    if form == "json":
        text = to_json(prediction_object(prediction))
    elif form == "csv":
        text = to_csv(prediction)
    emit(text, output)


def check_output(form: str, output: str | None) -> None:
    """Raise where ``form`` cannot be written to stdout, before anything is simulated."""
    if form == "parquet" and output is None:
        raise UserError("parquet needs a file", where="--format", fix="add -o FILE or choose csv")
    if output is not None:
        require_no_device(Path(output))


def emit(text: str, output: str | None) -> None:
    """``text`` to the file ``output``, or to stdout."""
    if output is not None:
        write_file(Path(output), text.encode())
        return
    if sys.stdout.encoding.lower().replace("-", "") == "utf8":
        sys.stdout.write(text)
    else:  # a C locale: keep the words, drop what it cannot show
        sys.stdout.write(
            text.translate(_PLAIN)
            .encode(sys.stdout.encoding, "replace")
            .decode(sys.stdout.encoding)
        )


_PLAIN: Final = str.maketrans(
    {
        "×": "x",
        "–": "-",
        "→": "-",
        "█": "#",
        "▒": "+",
        "÷": "/",
        "±": "+",
        "µ": "u",
        "·": ".",
        "…": ".",
    }
)


def write_file(path: Path, content: bytes) -> None:
    """Write beside ``path``, then rename."""
    require_no_device(path)
    try:
        handle, name = tempfile.mkstemp(prefix=f"{path.name}.partial-", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            mask = os.umask(0)
            os.umask(mask)
            Path(name).chmod(0o666 & ~mask)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UserError(
            f"cannot write it ({error.strerror})", where=str(path), fix="choose another -o"
        ) from None


def finite(value: float | None) -> float | None:
    """None where ``value`` is no finite number."""
    return value if value is not None and math.isfinite(value) else None
