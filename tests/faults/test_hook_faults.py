"""Notebook 2 on a bad day: every fault of the service, and a run afterwards that carries on."""

import time
import zipfile

import pytest

from helpers.errors import FailedRemotely, Rejected, TimedOut

NOTEBOOK = "2_hook_data_harvest.ipynb"
ORDERING = {"service": "hook", "method": "POST", "path": r"/BatchOrder/OData\.CSC\.Order$"}
TILE = "S2A_MSIL1C_20230910T050701_N0509_R019_T{}_20230910T074321.SAFE"
THREE = [TILE.format(name) for name in ("47VLH", "47VMH", "47VLJ")]
#: Requests of the notebook, in order of appearance.
REQUESTS = {
    "workflows": {"service": "hook", "method": "GET", "path": "/Workflows$"},
    "items": {"service": "hook", "method": "GET", "path": r"/BatchOrder\(\d+\)/Products$"},
    "archive": {"service": "hook-storage", "method": "GET"},
}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    sleep = time.sleep
    monkeypatch.setattr("time.sleep", lambda seconds: sleep(min(seconds, 0.1)))


def one_order_and_a_whole_file(sandbox, tmp_path) -> bool:
    archives = list((tmp_path / "outputs" / "first-harvest").glob("order-*/*.zip"))
    return len(sandbox.hook.orders) == len(archives) == 1 and zipfile.ZipFile(archives[0]).testzip() is None


@pytest.mark.parametrize("kind", ["too-many-requests", "error", "bad-gateway", "unavailable", "slow", "dropped"])
@pytest.mark.parametrize("where", REQUESTS)
def test_a_passing_fault_goes_unnoticed_when_reading(sandbox, open_notebook, tmp_path, kind, where):
    sandbox.traffic.fail(kind, **REQUESTS[where], times=2, seconds=0.2)
    open_notebook(NOTEBOOK).run()
    assert one_order_and_a_whole_file(sandbox, tmp_path)


@pytest.mark.parametrize("kind", ["too-many-requests", "error", "bad-gateway", "unavailable", "dropped", "lost-answer"])
def test_a_fault_while_ordering_never_orders_twice(sandbox, open_notebook, tmp_path, kind):
    sandbox.traffic.fail(kind, **ORDERING, seconds=0.2)
    open_notebook(NOTEBOOK).run()
    assert one_order_and_a_whole_file(sandbox, tmp_path)
    assert len(sandbox.traffic.received(**ORDERING)) == (1 if kind == "lost-answer" else 2)


def test_a_login_that_stumbles_goes_unnoticed(sandbox, open_notebook, tmp_path):
    sandbox.traffic.fail("bad-gateway", service="identity", method="GET")
    open_notebook(NOTEBOOK).run()
    assert one_order_and_a_whole_file(sandbox, tmp_path)


@pytest.mark.parametrize(("kind", "where", "error", "said"), [
    ("forbidden", "workflows", Rejected, "Role hook-workflows is required.*ask for access"),
    ("unprocessable", "ordering", Rejected, "value is not allowed"),
    ("bad-request", "ordering", Rejected, "Missing workflow options: output_storage"),
    ("forbidden", "ordering", Rejected, "ask for access"),
    ("expired-token", "ordering", Rejected, "Signature has expired"),
    ("too-many-requests", "ordering", TimedOut, "took none of 3"),
    ("error", "ordering", TimedOut, "took none of 3"),
    ("error", "items", TimedOut, "looks in a row failed"),
    ("dropped", "workflows", TimedOut, "no answer"),
    ("dropped", "archive", TimedOut, "no answer"),
    ("forbidden", "archive", Rejected, "its link is not accepted"),
])  # fmt: skip
def test_a_lasting_fault_ends_with_its_reason_and_the_next_run_carries_on(
    sandbox, open_notebook, tmp_path, kind, where, error, said
):
    sandbox.traffic.fail(kind, **(REQUESTS | {"ordering": ORDERING})[where], times=1000, seconds=0)
    # A file that could not be fetched is told by the last cells: it does not keep the others from coming.
    expected = AssertionError if where == "archive" else error
    with pytest.raises(expected, match=f"(?s){said}"):
        open_notebook(NOTEBOOK).run()
    sandbox.traffic.heal()
    open_notebook(NOTEBOOK).run()
    assert one_order_and_a_whole_file(sandbox, tmp_path)


def test_a_quota_that_is_used_up_is_not_waited_for(sandbox, open_notebook):
    sandbox.traffic.fail("too-many-requests", **ORDERING, seconds=86400 * 12)
    with pytest.raises(TimedOut, match=r"Wait 288\.0 hours and run this cell again"):
        open_notebook(NOTEBOOK).run()
    assert len(sandbox.traffic.received(**ORDERING)) == 1 and not sandbox.hook.orders


def test_a_token_that_ends_while_waiting_is_renewed(sandbox, open_notebook, tmp_path):
    sandbox.traffic.fail("expired-token", **REQUESTS["items"], skip=2)
    open_notebook(NOTEBOOK).run()
    assert one_order_and_a_whole_file(sandbox, tmp_path)
    assert len(sandbox.traffic.received("identity", "GET", "/auth$")) == 2  # two logins


def test_tokens_that_end_at_once_do_not_stop_the_run(sandbox, open_notebook, tmp_path):
    """A token shorter than the margin is renewed for each request; the order still is one."""
    sandbox.identity.lifetime = 30
    open_notebook(NOTEBOOK).run()
    assert one_order_and_a_whole_file(sandbox, tmp_path)


def test_a_wrong_password_is_explained_and_tried_once(sandbox, open_notebook):
    sandbox.identity.add_user("sandbox-user", "changed since", roles=("hook-workflows", "hook-medium"))
    with pytest.raises(Rejected, match=r"DestinE refuses the login: Invalid username or password.*DESP_PASSWORD"):
        open_notebook(NOTEBOOK).run()
    assert len(sandbox.traffic.received("identity", "POST")) == 1


def test_one_failed_item_of_three_does_not_block_the_others(sandbox, open_notebook, tmp_path):
    sandbox.traffic.fail("failed-item")
    with pytest.raises(AssertionError, match="1 of 3 products did not come"):
        open_notebook(NOTEBOOK, products=THREE).run()
    assert len(list((tmp_path / "outputs" / "first-harvest").glob("order-*/*.zip"))) == 2
    (order,) = sandbox.hook.orders.values()
    assert sorted(item.status for item in order.items) == ["completed", "completed", "failed"]


@pytest.mark.parametrize(("kind", "said"), [("failed-item", "1 of 1"), ("cancelled", "1 of 1")])
def test_an_order_of_which_nothing_comes_fails_and_says_why(sandbox, open_notebook, kind, said):
    sandbox.traffic.fail(kind)
    session = open_notebook(NOTEBOOK)
    with pytest.raises(AssertionError, match=f"{said} products did not come"):
        session.run()
    (row,) = session["outcome"]
    assert row["status"] == {"failed-item": "failed"}.get(kind, kind) and row["why"]


def test_a_download_that_is_cut_goes_on_where_it_ended(sandbox, open_notebook, tmp_path):
    sandbox.traffic.fail("cut", **REQUESTS["archive"])
    open_notebook(NOTEBOOK).run()
    assert one_order_and_a_whole_file(sandbox, tmp_path)
    assert [request.status for request in sandbox.traffic.received("hook-storage")] == [200, 206]


def test_a_download_that_is_cut_starts_again_where_ranges_are_not_known(sandbox, open_notebook, tmp_path):
    sandbox.hook.storage.ranges = False
    sandbox.traffic.fail("cut", **REQUESTS["archive"])
    open_notebook(NOTEBOOK).run()
    assert one_order_and_a_whole_file(sandbox, tmp_path)


def test_a_link_that_has_ended_is_replaced(sandbox, open_notebook, tmp_path):
    sandbox.traffic.fail("expired-link")
    open_notebook(NOTEBOOK).run()
    assert one_order_and_a_whole_file(sandbox, tmp_path)
    assert len(sandbox.traffic.received("hook", "GET", r"/\$value$")) == 1
    assert not any(request.authorized for request in sandbox.traffic.received("hook-storage"))


def test_a_product_that_has_left_temporary_storage_is_explained(sandbox, open_notebook):
    session = open_notebook(NOTEBOOK)
    session.run(cells=12)
    sandbox.clock.advance(86400 * 15)
    with pytest.raises(AssertionError, match="Temporary storage keeps products for two weeks; order again"):
        open_notebook(NOTEBOOK).run()


def test_missing_dates_and_messages_do_not_matter(sandbox, open_notebook, tmp_path):
    sandbox.traffic.fail("null-dates")
    session = open_notebook(NOTEBOOK).run()
    assert one_order_and_a_whole_file(sandbox, tmp_path)
    assert session["items"][0]["CompletedDate"] is None and "StatusMessage" not in session["items"][0]


def test_options_in_the_older_form_are_understood(sandbox, open_notebook, tmp_path):
    sandbox.traffic.fail("old-options")
    session = open_notebook(NOTEBOOK).run()
    assert one_order_and_a_whole_file(sandbox, tmp_path)
    assert {o.name: o.choices for o in session["known"]}["output_storage"] == ("PRIVATE", "TEMPORARY")


def test_waiting_too_long_says_so_and_carries_on(sandbox, open_notebook, tmp_path):
    with pytest.raises(TimedOut, match=r"Not finished after .*run this cell again"):
        open_notebook(NOTEBOOK, deadline_minutes=0.001).run()
    open_notebook(NOTEBOOK).run()
    assert one_order_and_a_whole_file(sandbox, tmp_path)


def test_wrong_keys_for_the_bucket_fail_before_anything_is_ordered(sandbox, open_notebook):
    session = open_notebook(NOTEBOOK, storage="PRIVATE", bucket="my-harvest").run(cells=3)
    sandbox.access_keys[session["settings"].hook_output_storage_access_key.get_secret_value()] = "changed since"
    with pytest.raises(Rejected, match="refuses you"):
        for cell in session.cells[3:]:
            session.execute(cell.source)
    assert not sandbox.hook.orders


def test_keys_that_changed_when_the_item_is_written_fail_it_with_the_storages_reason(sandbox, open_notebook):
    session = open_notebook(NOTEBOOK, storage="PRIVATE", bucket="my-harvest").run(cells=9)
    key = session["settings"].hook_output_storage_access_key.get_secret_value()
    before = sandbox.access_keys[key]
    sandbox.access_keys[key] = "changed since"
    for cell in session.cells[9:11]:  # order and wait
        session.execute(cell.source)
    sandbox.access_keys[key] = before
    with pytest.raises(AssertionError, match="SignatureDoesNotMatch"):
        for cell in session.cells[11:]:
            session.execute(cell.source)


@pytest.mark.parametrize("moment", ["before the request", "after the request"])
def test_a_kernel_killed_while_ordering_orders_once(sandbox, environment, tmp_path, moment):
    """A real kernel, killed for real in the middle of the one cell that counts."""
    import nbformat

    from helpers import runner

    from ..conftest import NOTEBOOKS

    notebook = nbformat.read(NOTEBOOKS / NOTEBOOK, as_version=4)
    cell = next(c for c in notebook.cells if "submit_or_reuse" in c.source and c.cell_type == "code")
    kill = "__import__('os').kill(__import__('os').getpid(), 9)"
    send = 'hook.session.post(f"{hook.url}/BatchOrder/OData.CSC.Order", json=body)'
    assert send in cell.source
    cell.source = cell.source.replace(send, kill if moment == "before the request" else f"[{send}, {kill}]")
    deadly = tmp_path / NOTEBOOK
    nbformat.write(notebook, deadly)

    killed = runner.run(deadly, output=tmp_path / "killed" / NOTEBOOK, env=environment)
    assert killed.outcome == "kernel died"
    assert len(sandbox.hook.orders) == (moment == "after the request")
    again = runner.run(NOTEBOOKS / NOTEBOOK, output=tmp_path / "again" / NOTEBOOK, env=environment)
    assert again.outcome == "ok", again.error
    assert one_order_and_a_whole_file(sandbox, tmp_path)


def test_an_order_is_found_by_its_name_from_another_machine(sandbox, open_notebook, tmp_path, monkeypatch):
    """Same run id, no notes: what the first machine ordered is not ordered again."""
    open_notebook(NOTEBOOK).run()
    monkeypatch.setenv("RECIPES_STATE_DIR", str(tmp_path / "elsewhere"))
    open_notebook(NOTEBOOK).run()
    assert len(sandbox.hook.orders) == 1


def test_the_service_has_a_problem_for_good(sandbox, open_notebook):
    sandbox.traffic.fail("unavailable", service="hook", times=1000, seconds=0)
    with pytest.raises(FailedRemotely, match="again later"):
        open_notebook(NOTEBOOK).run()
