"""The archive recipe spread over a dask cluster: a worker dies in the middle, and everything arrives once."""

import os
import signal
import threading
import time
from collections import Counter
from dataclasses import replace

import pytest
from pydantic import SecretStr

from helpers import archive
from helpers.archive import cluster as spreading
from helpers.errors import Rejected
from tests.unit.test_archive import Stub, quiet, states, stub, stub_process  # noqa: F401 - fixtures

FILES = 400


@pytest.fixture(scope="module")
def cluster():
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50) as cluster:
        yield cluster


@pytest.mark.slow
def test_a_worker_is_killed_and_everything_arrives_once(stub, cluster, monkeypatch, tmp_path):  # noqa: F811
    monkeypatch.setattr(spreading, "BATCH", 50)
    plan = stub.plan(FILES)
    stub.control(delay=0.1)
    victims = [worker.pid for worker in cluster.workers.values()]
    killed = threading.Event()

    def kill() -> None:
        while stub.control()["copies"] < FILES // 4:
            time.sleep(0.02)
        os.kill(victims[0], signal.SIGKILL)
        killed.set()

    thread = threading.Thread(target=kill)
    thread.start()
    lines: list[str] = []
    outcomes = archive.transfer(
        plan, scheduler=cluster.scheduler_address, show=lines.append, manifest=tmp_path / "m.csv", workers=10
    )
    thread.join()
    assert killed.is_set()
    assert Counter(outcome.outcome for outcome in outcomes) == {"copied": FILES}
    assert len({outcome.target for outcome in outcomes}) == FILES
    seen = stub.control()
    assert seen["copied"] == FILES
    assert seen["twice"] <= 20  # at most what was under way when the worker died
    assert len(archive.read_manifest(tmp_path / "m.csv")) == FILES
    assert lines[-1].startswith(f"{FILES} of {FILES} files,")
    assert {check.verdict for check in archive.verify(plan, outcomes)} == {"ok"}


def test_credentials_that_end_stop_every_worker(stub, cluster, monkeypatch):  # noqa: F811
    monkeypatch.setattr(spreading, "BATCH", 20)
    plan = stub.plan(400)
    stub.control(delay=0.02, expires_after=60)
    outcomes = archive.transfer(plan, scheduler=cluster.scheduler_address, show=quiet, workers=10)
    counts = Counter(outcome.outcome for outcome in outcomes)
    assert counts["copied"] == 60 and counts["not tried"] > 200 and sum(counts.values()) == 400
    assert stub.control()["refused"] <= 50


def test_keys_do_not_travel_where_others_can_listen(stub):  # noqa: F811
    plan = stub.plan(1)
    with pytest.raises(Rejected, match="unencrypted"):
        archive.transfer(plan, scheduler="tcp://scheduler.example:8786", show=quiet)


def test_workers_get_no_other_secrets(stub):  # noqa: F811
    settings = stub.target.settings.model_copy(
        update={"earthdata_token": SecretStr("canary"), "desp_password": SecretStr("canary")}
    )
    place = spreading._for_workers("tcp://127.0.0.1:1", replace(stub.target, settings=settings))
    values = [value.get_secret_value() for _, value in place.settings if isinstance(value, SecretStr)]
    assert sorted(values) == ["a", "b"]
    assert states and Stub
