"""Waiting for remote work: what is reported, when it ends, and which errors are waited out."""

import itertools
import time
from datetime import UTC, datetime

import pytest

from helpers import waiting
from helpers.errors import FailedRemotely, NotConfigured, Rejected, TimedOut
from helpers.waiting import until_finished

FINISHED = ("SUCCEEDED", "FAILED")


class Service:
    """Answers each look with the next line of a script (states, or an error), and the last one for ever."""

    def __init__(self, *script: dict | Exception):
        self.script = [*script[:-1]]
        self.last = script[-1]
        self.looks = 0

    def __call__(self) -> dict[str, str]:
        self.looks += 1
        answer = self.script.pop(0) if self.script else self.last
        if isinstance(answer, Exception):
            raise answer
        return answer


def wait(service: Service, **how) -> list[waiting.Change]:
    how = {"deadline": 5, "longest": 0.01, "show": lambda _: None} | how
    return until_finished(service, FINISHED, **how)


def test_every_change_is_reported_once_and_in_order():
    said = []
    service = Service(
        {"a": "PENDING", "b": "PENDING"},
        {"a": "RUNNING", "b": "PENDING"},
        {"a": "RUNNING", "b": "PENDING"},
        {"a": "RUNNING", "b": "FAILED"},
        {"a": "SUCCEEDED", "b": "FAILED"},
    )
    began = datetime.now(UTC)
    changes = wait(service, show=said.append)
    assert [(c.item, c.state) for c in changes] == [
        ("a", "PENDING"),
        ("b", "PENDING"),
        ("a", "RUNNING"),
        ("b", "FAILED"),
        ("a", "SUCCEEDED"),
    ]
    assert [line.split("  ", 1)[1] for line in said] == [
        "a: PENDING",
        "b: PENDING",
        "a: PENDING -> RUNNING",
        "b: PENDING -> FAILED",
        "a: RUNNING -> SUCCEEDED",
    ]
    times = [c.time for c in changes]
    assert began <= times[0] and times == sorted(times) and times[-1] <= datetime.now(UTC)
    assert service.looks == 5


def test_what_is_finished_already_needs_one_look_and_no_pause():
    service = Service({"a": "FAILED"})
    started = time.monotonic()
    wait(service, longest=60)
    assert service.looks == 1 and time.monotonic() - started < 0.3


def test_states_nobody_has_heard_of_are_waited_out():
    changes = wait(Service({"a": "TRANSMOGRIFYING"}, {"a": "SUCCEEDED"}))
    assert [c.state for c in changes] == ["TRANSMOGRIFYING", "SUCCEEDED"]


def test_the_deadline_names_what_is_unfinished_and_nothing_else():
    started = time.monotonic()
    with pytest.raises(TimedOut) as error:
        wait(Service({"slow": "RUNNING", "done": "SUCCEEDED", "late": "PENDING"}), deadline=0.3)
    assert str(error.value).startswith("Not finished after 0.3 s: slow, late. ")
    assert "run this cell again" in str(error.value)
    assert 0.2 < time.monotonic() - started < 2


def test_the_deadline_is_not_slept_past():
    started = time.monotonic()
    with pytest.raises(TimedOut):
        wait(Service({"a": "RUNNING"}), deadline=0.2, longest=60)  # the first pause would be longer
    assert time.monotonic() - started < 0.4


def test_the_deadline_without_any_answer_says_that():
    with pytest.raises(TimedOut, match="no answer yet"):
        wait(Service(TimedOut("silence")), deadline=0.2, patience=10_000)


@pytest.mark.parametrize("error", [TimedOut("silence"), FailedRemotely("answered 500")])
def test_passing_errors_are_forgiven_up_to_patience(error):
    service = Service({"a": "PENDING"}, *[error] * 3, {"a": "SUCCEEDED"})
    changes = wait(service, patience=3)
    assert [c.state for c in changes] == ["PENDING", "SUCCEEDED"]
    with pytest.raises(TimedOut, match=f"4 looks in a row failed, the last one like this: {error}"):
        wait(Service({"a": "PENDING"}, *[error] * 4, {"a": "SUCCEEDED"}), patience=3)


def test_passing_errors_are_counted_in_a_row():
    error = FailedRemotely("answered 500")
    bad_day = [answer for _ in range(5) for answer in (error, error, {"a": "RUNNING"})]
    changes = wait(Service(*bad_day, {"a": "SUCCEEDED"}), patience=2)
    assert [c.state for c in changes] == ["RUNNING", "SUCCEEDED"]


@pytest.mark.parametrize("error", [Rejected("no"), NotConfigured("no token"), KeyError("status"), ValueError("x")])
def test_other_errors_are_raised_at_once(error):
    service = Service({"a": "PENDING"}, error, {"a": "SUCCEEDED"})
    with pytest.raises(type(error)):
        wait(service)
    assert service.looks == 2


def test_pauses_grow_from_the_first_to_the_longest_with_jitter():
    pauses = list(itertools.islice(waiting._pauses(0.5, 10), 30))
    assert 0.45 <= pauses[0] <= 0.55
    assert all(9 <= pause <= 11 for pause in pauses[-10:])
    assert sum(pauses[:5]) > 5 * 0.5
    assert len({round(pause, 6) for pause in pauses[-10:]}) > 1


def test_waiting_works_against_the_service(sandbox, hyp3):
    """Job states as HyP3 tells them, over a service that stumbles on the way."""
    granules = ["S1_136231_IW2_20200604T022312_VV_7C85-BURST", "S1_136231_IW2_20200616T022313_VV_5D11-BURST"]
    job = hyp3.submit_prepared_jobs([{"job_type": "INSAR_ISCE_BURST", "job_parameters": {"granules": granules}}])[0]
    sandbox.traffic.fail("error", service="hyp3", method="GET", times=2)
    changes = until_finished(
        lambda: {"pair": hyp3.get_job_by_id(job.job_id).status_code},
        FINISHED,
        deadline=30,
        longest=0.2,
        show=lambda _: None,
    )
    states = [c.state for c in changes]
    assert states[-1] == "SUCCEEDED"
    assert states == sorted(set(states), key=["PENDING", "RUNNING", "SUCCEEDED"].index)
