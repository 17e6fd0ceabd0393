"""What trackers hold, read back by their own libraries: metric -> iteration -> value."""

from __future__ import annotations

import csv
import json
import struct
from pathlib import Path

Curves = dict[str, dict[int, float]]


def of_metrics_json(folder: Path) -> Curves:
    curves: Curves = {}
    for line in (folder / "metrics.json").read_text().splitlines():
        row = json.loads(line)
        for name, value in row.items():
            if name != "iteration" and value is not None:
                assert row["iteration"] not in curves.setdefault(name, {})
                curves[name][row["iteration"]] = value
    return curves


def of_csv(folder: Path) -> Curves:
    curves: Curves = {}
    with open(folder / "metrics.csv", newline="") as file:
        for row in csv.DictReader(file):
            points = curves.setdefault(row["metric"], {})
            assert int(row["iteration"]) not in points
            points[int(row["iteration"])] = float(row["value"])
    return curves


def wandb_records(folder: Path) -> list:
    """Return the records of the one offline run of a folder.

    The file is LevelDB's log behind a header of 7 bytes: blocks of 32 KiB, in which a record has
    checksum (4), length (2) and type (1: whole, 2: first, 3: middle, 4: last part).
    """
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    data, place, part, records = file.read_bytes(), 7, b"", []
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        part += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            records.append(Record.FromString(part))
            part = b""
    return records


def of_wandb(folder: Path) -> Curves:
    curves: Curves = {}
    for record in wandb_records(folder):
        if record.WhichOneof("record_type") != "history":
            continue
        found = {
            (item.key or "/".join(item.nested_key)): json.loads(item.value_json)
            for item in record.history.item
        }
        step = found.get("_step", record.history.step.num)
        for name, value in found.items():
            if not name.startswith("_"):
                assert step not in curves.setdefault(name, {})
                curves[name][step] = value
    return curves


def of_mlflow(uri: str, run_id: str) -> Curves:
    from mlflow import MlflowClient

    client, curves = MlflowClient(uri), {}
    for name in client.get_run(run_id).data.metrics:
        points = client.get_metric_history(run_id, name)
        assert len({point.step for point in points}) == len(points)  # nothing twice
        curves[name] = {point.step: point.value for point in points}
    return curves


def of_tensorboard(folder: Path) -> Curves:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    curves = {name: events.Scalars(name) for name in events.Tags()["scalars"]}
    for points in curves.values():
        assert len({point.step for point in points}) == len(points)  # nothing twice
    return {name: {p.step: p.value for p in points} for name, points in curves.items()}
