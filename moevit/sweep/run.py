"""Runs a sweep's points on all cores or on a cluster, and remembers what is done."""

import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from moevit.errors import InputError, ToolError
from moevit.sweep.grid import Point
from moevit.sweep.measure import Row, Subject, measure

Progress = Callable[[int], None]

_subject: Subject | None = None  # of a worker process


def run(
    subject: Subject, points: Sequence[Point], record: Path, *, jobs: int, cluster: str | None = None,
    progress: Progress = lambda n: None,
) -> list[Row]:  # fmt: skip
    """Rows of all points, in their order.

    Parameters
    ----------
    subject : the model
    points : machines
    record : file that each finished row is added to, and where rows of an earlier run are taken from
    jobs : worker processes
    cluster : address of a dask scheduler, which is used instead of processes here
    progress : told how many rows more there are

    Raises
    ------
    ToolError : dask is not installed, or its scheduler does not answer
    InputError : ``record`` is no file of rows
    """
    known = read_record(record)
    keys = [subject.key(point) for point in points]
    progress(sum(key in known for key in keys))
    missing = [(key, point) for key, point in zip(keys, points, strict=True) if key not in known]
    todo = [point for _, point in {key: (key, point) for key, point in missing}.values()]
    if todo:
        source = _on_cluster(subject, todo, cluster) if cluster else _here(subject, todo, jobs)
        for row in source:
            known[row["key"]] = row
            with record.open("a", encoding="utf-8") as file:  # an interruption loses only what is under way
                file.write(json.dumps(row) + "\n")
            progress(1)
    return [known[key] for key in keys]


def read_record(record: Path) -> dict[str, Row]:
    """Rows by key. A line that was cut off by an interruption is dropped; anything else is not ours."""
    rows: dict[str, Row] = {}
    lines = record.read_text(encoding="utf-8").splitlines(keepends=True) if record.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            rows[row["key"]] = row
        except (ValueError, KeyError, TypeError):
            if number == len(lines) and not line.endswith("\n"):
                _cut(record, lines[:-1])
                continue
            raise InputError(
                "holds no rows of a sweep", where=f"{record}:{number}", mend="remove it, or use another folder"
            ) from None
    return rows


def _cut(record: Path, lines: Sequence[str]) -> None:
    temporary = record.with_name(f".{record.name}")
    temporary.write_text("".join(lines), encoding="utf-8")
    os.replace(temporary, record)


def _here(subject: Subject, points: Sequence[Point], jobs: int) -> Iterator[Row]:
    if jobs == 1 or len(points) == 1:
        yield from (measure(subject, point) for point in points)
        return
    context = get_context("spawn")  # a fork of a process with threads may lock up
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin, initargs=(subject,)) as pool:
        futures = [pool.submit(_measure, point) for point in points]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin(subject: Subject) -> None:
    """In a worker, before its first point.

    Ctrl-C reaches all processes of a terminal. A worker that it stops while it holds the queue's lock leaves the others
    waiting for ever, so only the process that started them listens to it: they end when it takes the queue away.
    """
    global _subject
    _subject = subject
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threadpool_limits(1)


def _measure(point: Point) -> Row:
    assert _subject is not None
    return measure(_subject, point)


def _on_cluster(subject: Subject, points: Sequence[Point], address: str) -> Iterator[Row]:
    try:
        import distributed
    except ImportError as error:
        raise ToolError(
            "dask is not installed", where="--dask", mend="pip install 'moevit[sweep]', or leave --dask away"
        ) from error
    try:
        client: Any = distributed.Client(address, timeout=20, set_as_default=False)
    except (OSError, ValueError) as error:
        text = " ".join(str(error).split())[:200]
        raise ToolError(
            f"no dask scheduler answers ({text})", where=f"--dask {address}", mend="start one with `dask scheduler`"
        ) from error
    with client, client.as_current():
        shared = client.scatter(subject, broadcast=True)
        futures = [client.submit(measure, shared, point, pure=False) for point in points]
        for future in distributed.as_completed(futures):
            yield future.result()
