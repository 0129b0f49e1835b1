"""Notebook 1 on a bad day: every fault, at every kind of request, and a run afterwards that carries on."""

import time

import pytest

from helpers.errors import FailedRemotely, Rejected, TimedOut

NOTEBOOK = "1_hyp3_user_bucket.ipynb"
#: Requests of the notebook, in order of appearance: method and path.
REQUESTS = {
    "policy": ("GET", "^/bucket-policy/"),
    "validation": ("POST", "^/jobs$"),
    "credits": ("GET", "^/user$"),
    "job": ("GET", "^/jobs/."),
}
#: In the cell that waits; what follows asks HyP3 for nothing.
WAITED = '"states"'


def exactly_three_jobs_paid_once(sandbox) -> bool:
    return len(sandbox.hyp3.jobs) == 3 and sandbox.hyp3.user("sandbox-user")["remaining_credits"] == 8000 - 27


@pytest.mark.parametrize("kind", ["too-many-requests", "error", "bad-gateway", "unavailable", "slow", "dropped"])
@pytest.mark.parametrize("where", ["policy", "job"])
def test_a_passing_fault_goes_unnoticed_when_reading(sandbox, open_notebook, kind, where):
    method, path = REQUESTS[where]
    sandbox.traffic.fail(kind, service="hyp3", method=method, path=path, times=2, seconds=0.2)
    open_notebook(NOTEBOOK).run(until=WAITED)
    assert exactly_three_jobs_paid_once(sandbox)


@pytest.mark.parametrize("kind", ["too-many-requests", "error", "unavailable", "dropped", "lost-answer"])
def test_a_fault_while_submitting_never_submits_twice(sandbox, open_notebook, kind):
    # The first POST asks for validation only; the second one submits.
    sandbox.traffic.fail(kind, service="hyp3", method="POST", path="^/jobs$", skip=1, seconds=0.2)
    open_notebook(NOTEBOOK).run(until=WAITED)
    assert exactly_three_jobs_paid_once(sandbox)


@pytest.mark.parametrize(("kind", "where", "error", "advice"), [
    ("expired-token", "policy", Rejected, "Get a new token"),
    ("expired-token", "validation", Rejected, "Get a new token"),
    ("expired-token", "credits", Rejected, "Get a new token"),
    ("expired-token", "job", Rejected, "Get a new token"),
    ("forbidden", "validation", Rejected, "ask for access"),
    ("error", "policy", FailedRemotely, "again later"),
    ("error", "validation", FailedRemotely, "again later"),
    ("error", "job", FailedRemotely, "again later"),
    ("too-many-requests", "validation", TimedOut, "Wait a little"),
    ("too-many-requests", "job", TimedOut, "Wait a little"),
    ("dropped", "credits", TimedOut, "Run this cell again"),
    ("dropped", "job", TimedOut, "Run this cell again"),
])  # fmt: skip
def test_a_lasting_fault_ends_with_advice_and_the_next_run_carries_on(
    sandbox, open_notebook, monkeypatch, where, kind, error, advice
):
    sleep = time.sleep
    monkeypatch.setattr("time.sleep", lambda seconds: sleep(min(seconds, 0.05)))
    method, path = REQUESTS[where]
    sandbox.traffic.fail(kind, service="hyp3", method=method, path=path, times=1000, seconds=0)
    with pytest.raises(error, match=advice):
        open_notebook(NOTEBOOK).run(until=WAITED)
    sandbox.traffic.heal()
    open_notebook(NOTEBOOK).run(until=WAITED)
    assert exactly_three_jobs_paid_once(sandbox)


def test_a_token_that_expires_while_waiting_loses_nothing(sandbox, open_notebook):
    sandbox.traffic.fail("expired-token", service="hyp3", method="GET", path="^/jobs/.", skip=4)
    with pytest.raises(Rejected, match="Get a new token"):
        open_notebook(NOTEBOOK).run()
    open_notebook(NOTEBOOK).run()
    assert exactly_three_jobs_paid_once(sandbox)


def test_waiting_too_long_says_so_and_carries_on(sandbox, open_notebook):
    with pytest.raises(TimedOut, match=r"Not finished after 0\.06 s: .*run this cell again"):
        open_notebook(NOTEBOOK, deadline_minutes=0.001).run()
    open_notebook(NOTEBOOK).run()
    assert exactly_three_jobs_paid_once(sandbox)


def test_s3_that_stumbles_goes_unnoticed(sandbox, open_notebook):
    sandbox.traffic.fail("unavailable", service="s3", method="GET", times=2)
    sandbox.traffic.fail("dropped", service="s3", method="GET", skip=4)
    open_notebook(NOTEBOOK).run()
    assert exactly_three_jobs_paid_once(sandbox)


@pytest.mark.parametrize("moment", ["before the request", "after the request"])
def test_a_kernel_killed_while_submitting_submits_once(sandbox, environment, tmp_path, moment):
    """A real kernel, killed for real in the middle of the one cell that costs something."""
    import nbformat

    from helpers import runner

    from ..conftest import NOTEBOOKS

    notebook = nbformat.read(NOTEBOOKS / NOTEBOOK, as_version=4)
    cell = next(c for c in notebook.cells if "submit=hyp3.submit_prepared_jobs" in c.source)
    kill = "__import__('os').kill(__import__('os').getpid(), 9)"
    send = f"[{kill}]" if moment == "before the request" else f"[hyp3.submit_prepared_jobs(chunk), {kill}]"
    cell.source = cell.source.replace("submit=hyp3.submit_prepared_jobs", f"submit=lambda chunk: {send}")
    deadly = tmp_path / NOTEBOOK
    nbformat.write(notebook, deadly)

    killed = runner.run(deadly, output=tmp_path / "killed" / NOTEBOOK, env=environment)
    assert killed.outcome == "kernel died"
    again = runner.run(NOTEBOOKS / NOTEBOOK, output=tmp_path / "again" / NOTEBOOK, env=environment)
    assert again.outcome == "ok", again.error
    assert exactly_three_jobs_paid_once(sandbox)
