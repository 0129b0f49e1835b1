"""Orders at the Hook stand-in: placed once, watched by their items; what is delivered recognised in any form."""

import json

import pytest
from pydantic import SecretStr

from helpers import __main__ as command_line
from helpers import hook, once
from helpers.errors import Rejected, TimedOut
from helpers.state import RunState

L1C = "S2A_MSIL1C_20230910T050701_N0509_R019_T47VLH_20230910T074321.SAFE"
POST = {"service": "hook", "method": "POST", "path": r"/BatchOrder/OData\.CSC\.Order$"}


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def connection(settings):
    return hook.connect(settings)


def an_order(name="an order", products=(L1C,), **options) -> dict:
    values = {"output_storage": "TEMPORARY", **options}
    return {
        "Name": name,
        "WorkflowName": "copdem",
        "IdentifierList": list(products),
        "WorkflowOptions": [{"Name": option, "Value": value} for option, value in values.items()],
    }


@pytest.fixture
def place(settings, connection):
    """Place an order as the notebook does: ``place(order, run_id)``."""

    def place_it(order, run_id="one", post=None, settle=0.4):
        state = RunState(settings, "hook", run_id)
        send = post or (lambda body: connection.session.post(f"{connection.url}/BatchOrder/OData.CSC.Order", json=body))
        return hook.submit_or_reuse(order, state, connection, post=send, settle=settle, show=lambda line: None)

    return place_it


# --- placing ---


def test_a_run_orders_once(sandbox, place):
    assert place(an_order()) == place(an_order())
    assert len(sandbox.hook.orders) == len(sandbox.traffic.received(**POST)) == 1


def test_two_runs_order_twice(sandbox, place):
    assert place(an_order("a"), "one") != place(an_order("b"), "two")


def test_a_run_that_wants_something_else_is_refused_before_it_is_sent(sandbox, place):
    place(an_order())
    with pytest.raises(Rejected, match=r"ordered something else already \(an order\).*choose another run_id"):
        place(an_order(products=[L1C.replace("47VLH", "47VMH")]))
    assert len(sandbox.traffic.received(**POST)) == 1


def test_what_the_service_refused_may_be_corrected(sandbox, place):
    with pytest.raises(Rejected, match="answered 4"):
        place(an_order(output_storage="NOWHERE"))
    place(an_order())
    assert len(sandbox.hook.orders) == 1


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_process_killed_around_the_request_is_carried_on(sandbox, place, connection, when):
    def killed(body):
        if when == "after":
            connection.session.post(f"{connection.url}/BatchOrder/OData.CSC.Order", json=body)
        raise Killed

    with pytest.raises(Killed):
        place(an_order(), post=killed)
    there = list(sandbox.hook.orders)
    order_id = place(an_order())
    assert list(sandbox.hook.orders) == [order_id]
    assert when == "before" or there == [order_id]


def test_an_order_is_looked_up_on_every_page_of_the_list(sandbox, place, connection, monkeypatch):
    ids = [place(an_order(f"order {n}"), f"run-{n}") for n in range(5)]
    get = connection.session.get
    monkeypatch.setattr(
        connection.session, "get", lambda url, **kw: get(url + ("?$top=2" if url.endswith("/BatchOrder") else ""), **kw)
    )
    assert [entry["Id"] for entry in hook.pages(connection, "BatchOrder")] == ids
    assert place(an_order("order 0"), "another-machine") == ids[0]


def test_notes_hold_no_secret(sandbox, settings, place):
    secret = "a-secret-of-a-storage"
    values = {"output_storage": "PRIVATE", "output_s3_endpoint_url": "http://127.0.0.1:9", "output_s3_path": "s3://b/p"}
    values |= {"output_s3_access_key": SecretStr(secret), "output_s3_secret_key": SecretStr(secret)}
    place(an_order(**values))
    state = RunState(settings, "hook", "one")
    assert state.get(once.NOTES)[0]["id"] and secret not in state.path.read_text()
    sent = {option["Name"] for option in next(iter(sandbox.hook.orders.values())).options}
    assert {"output_s3_access_key", "output_s3_secret_key"} <= sent


# --- waiting ---


def test_the_items_are_the_truth(sandbox, place, connection):
    sandbox.traffic.fail("failed-item")
    order_id = place(an_order(products=[L1C, L1C.replace("47VLH", "47VMH")]))
    items, changes = hook.wait(order_id, connection, deadline=20, first=0.05, show=lambda line: None)
    assert sorted(map(hook.status, items)) == ["completed", "failed"]
    assert {change.item for change in changes} == set(map(hook.label, items))
    rows = hook.outcome(items, {}, [hook.product_of(item) for item in items])
    assert sorted(bool(row["why"]) for row in rows) == [False, True]


def test_a_wait_that_is_cut_short_is_taken_up_again(sandbox, place, connection):
    order_id = place(an_order())
    with pytest.raises(TimedOut, match="run this cell again"):
        hook.wait(order_id, connection, deadline=0.01, first=0.05, show=lambda line: None)
    items, _ = hook.wait(order_id, connection, deadline=20, first=0.05, show=lambda line: None)
    assert [hook.status(item) for item in items] == ["completed"]


def test_a_cancelled_order_ends_the_wait(sandbox, place, connection):
    order_id = place(an_order(products=[L1C, L1C.replace("47VLH", "47VMH")]))
    hook.cancel(order_id, connection)
    items, _ = hook.wait(order_id, connection, deadline=20, first=0.05, show=lambda line: None)
    assert set(map(hook.status, items)) <= {"cancelled", "completed"}


@pytest.mark.parametrize("reference", ["A.SAFE", {"Reference": "A.SAFE", "ContentDate": None}])
def test_both_forms_of_a_reference_are_understood(reference):
    assert hook.product_of({"InputProductReference": reference}) == "A.SAFE"
    assert hook.status({"Status": "Completed"}) == "completed"


# --- what is delivered ---

ITEM = {"Id": 7, "InputProductReference": L1C, "ProcessedName": L1C}
STEM = L1C.removesuffix(".SAFE")


@pytest.mark.parametrize(("keys", "paths"), [
    ([f"p/{L1C}/manifest.safe", f"p/{L1C}/a/b.jp2"], [f"{L1C}/manifest.safe", f"{L1C}/a/b.jp2"]),
    ([f"p/{STEM}/manifest.safe"], [f"{STEM}/manifest.safe"]),
    ([f"p/{L1C}.zip"], [f"{L1C}.zip"]),
    ([f"p/{STEM}.zip"], [f"{STEM}.zip"]),
    ([f"p/2023/09/10/{STEM}.zip"], [f"{STEM}.zip"]),
    ([f"p/{L1C}/{L1C}/manifest.safe"], [f"{L1C}/{L1C}/manifest.safe"]),
    (["p/another.zip", f"p/x{STEM}.zip", f"p/{STEM}x/a"], []),
    ([f"p/{L1C}/../../etc/passwd", f"p/{L1C}/"], []),
])  # fmt: skip
def test_what_belongs_to_an_item_is_recognised_in_any_form(keys, paths):
    assert hook.delivered(ITEM, dict.fromkeys(keys, 1)) == dict(zip(keys, paths, strict=False) if paths else {})


def manifest(**sizes) -> bytes:
    streams = "".join(
        f'<byteStream size="{size}"><fileLocation href="./{name.replace("_", "/")}"/></byteStream>'
        for name, size in sizes.items()
    )
    return f"<XFDU>{streams}</XFDU>".encode()


def test_a_tree_is_held_against_its_own_manifest():
    content = manifest(a=3, b_c=4)
    there = {f"p/{L1C}/manifest.safe": len(content), f"p/{L1C}/a": 3, f"p/{L1C}/b/c": 4}
    mine = hook.delivered(ITEM, there)
    assert hook.verdict(mine, there, lambda key: content) == "ok"
    del there[f"p/{L1C}/b/c"]
    mine = hook.delivered(ITEM, there)
    assert hook.verdict(mine, there, lambda key: content) == "1 of its files are missing or differ, the first: b/c"
    there |= {f"p/{L1C}/b/c": 3, f"p/{L1C}/a": 2}
    assert "2 of its files" in hook.verdict(mine, there, lambda key: content)
    assert "manifest" in hook.verdict(mine, there, lambda key: b"<broken")


def test_an_archive_has_to_be_there_and_to_have_something_in_it():
    there = {f"p/{STEM}.zip": 10}
    assert hook.verdict(hook.delivered(ITEM, there), there, lambda key: b"") == "ok"
    there = {f"p/{STEM}.zip": 0}
    assert hook.verdict(hook.delivered(ITEM, there), there, lambda key: b"") == f"empty: {STEM}.zip"
    assert hook.verdict({}, there, lambda key: b"") == "missing"


def test_objects_come_home_once_and_all_failures_are_told(sandbox, settings, tmp_path):
    s3 = hook.storage(settings)
    s3.create_bucket(Bucket="mine")
    for name in ("a", "b/c"):
        s3.put_object(Bucket="mine", Key=f"p/{L1C}/{name}", Body=name.encode())
    keys = {f"p/{L1C}/{name}": f"{L1C}/{name}" for name in ("a", "b/c")}
    there = {f"p/{L1C}/a": 1, f"p/{L1C}/b/c": 3}
    root = hook.bring_from_bucket(s3, "mine", keys, there, tmp_path)
    assert root == tmp_path / L1C and (root / "b/c").read_bytes() == b"b/c"
    received = len(sandbox.traffic.received("s3", "GET"))
    hook.bring_from_bucket(s3, "mine", keys, there, tmp_path)
    assert len(sandbox.traffic.received("s3", "GET")) == received
    (root / "b/c").write_bytes(b"b")  # cut short by somebody
    hook.bring_from_bucket(s3, "mine", keys, there, tmp_path)
    assert (root / "b/c").read_bytes() == b"b/c"
    with pytest.raises(Rejected, match=r"(?s)2 problems.*p/x.*p/y"):
        hook.bring_from_bucket(s3, "mine", {"p/x": "x", "p/y": "y"}, {"p/x": 1, "p/y": 1}, tmp_path)
    assert not (tmp_path / "x").exists()


# --- afterwards ---


def test_provenance_tells_what_is_not_secret(sandbox, place, connection, tmp_path):
    order = an_order(output_s3_secret_key=SecretStr("hidden-from-all"))
    file = tmp_path / "x.zip"
    file.write_bytes(b"abc")
    told = hook.provenance(order, 5, [ITEM | {"Status": "completed"}], {7: file}, connection)
    assert "hidden-from-all" not in json.dumps(told) and told["options"] == {"output_storage": "TEMPORARY"}
    assert told["items"][0]["sha256"].startswith("ba7816bf") and told["items"][0]["bytes"] == 3


def test_clean_up_from_the_command_line_deletes_what_was_noted_and_cancels(
    sandbox, environment, settings, place, connection, tmp_path, capsys
):
    order_id = place(an_order(products=[L1C, L1C.replace("47VLH", "47VMH"), L1C.replace("47VLH", "47VLJ")]))
    state = RunState(settings, "hook", "one")
    kept, file = tmp_path / "run" / "mine.txt", tmp_path / "run" / "x.zip"
    kept.parent.mkdir()
    kept.write_text("mine")
    file.write_text("x")
    hook.remember(state, paths=[file])
    assert command_line.main(["cleanup", "one"]) == 0
    assert capsys.readouterr().out == "hook: withdrawn: 1 orders; deleted: 1 files, 0 objects\n"
    assert kept.exists() and not file.exists()
    items, _ = hook.wait(order_id, connection, deadline=20, first=0.05, show=lambda line: None)
    assert "cancelled" in set(map(hook.status, items))
    assert command_line.main(["cleanup", "one"]) == 0  # again: nothing is left to do
    assert command_line.main(["cleanup", "two"]) == 1
    assert "No run 'two' is known at this service; known: one." in capsys.readouterr().err


def test_clean_up_without_a_shared_sandbox_starts_none_and_says_so(tmp_path, monkeypatch, capsys):
    from helpers import settings as room

    monkeypatch.setenv("RECIPES_STATE_DIR", str(tmp_path))
    monkeypatch.setattr(room, "find_env_file", lambda: None)
    monkeypatch.setattr(room, "in_process_sandbox", lambda: False)
    monkeypatch.setattr(room, "load", None)  # what would start one
    assert command_line.main(["cleanup", "one"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("No shared sandbox is running") and "`python -m helpers sandbox`" in said
