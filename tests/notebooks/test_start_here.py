"""Notebook 0: what it shows of the chain is what there is; it changes nothing, and nothing that is missing stops it."""

import nbformat
import pytest

from helpers import chain, runner
from helpers.conversion import prefect_server

from ..conftest import NOTEBOOKS
from .test_every_notebook import CREDENTIALS, leaks, live_environment, secrets_in

NAME = "0_start_here.ipynb"
BUCKET = "hyp3-products-123456789012"


def outputs(path, kind: str) -> list[dict]:
    cells = nbformat.read(path, as_version=4).cells
    return [o for cell in cells for o in cell.get("outputs", []) if kind in o.get("data", {})]


def changing(sandbox) -> list:
    """Requests that are no reading; a login to DestinE is a form that is sent."""
    return [r for r in sandbox.traffic.received() if r.method not in ("GET", "HEAD") and r.service != "identity"]


def test_in_a_new_sandbox_it_looks_starts_nothing_and_names_the_notebooks(sandbox, open_notebook, monkeypatch):
    def started(*_: object, **__: object) -> None:
        raise AssertionError("notebook 0 has started something")

    monkeypatch.setattr(prefect_server, "ensure", started)
    monkeypatch.setattr(sandbox.catalogue, "start", started)
    session = open_notebook(NAME).run()
    assert {link.state for link in session["links"]} == {"nothing yet"}
    assert {link.notebook for link in session["links"]} == set("123456")
    assert [link.step for link in session["links"]] == sorted(
        [link.step for link in session["links"]], key=chain.STEPS.index
    )
    assert {r.service for r in sandbox.traffic.received()} - {"stac"} == {"hyp3", "identity", "hook", "catalog"}
    assert changing(sandbox) == []


def test_after_a_recipe_the_chain_has_what_it_brought(sandbox, open_notebook):
    open_notebook("1_hyp3_user_bucket.ipynb").run()
    sandbox.traffic.requests.clear()
    links = {link.place: link for link in open_notebook(NAME, places=[f"s3://{BUCKET}"]).run()["links"]}
    from helpers.objectstore import objects

    there = objects(sandbox._s3_client("sandbox-user"), BUCKET, "")
    facts = f"{len(there)} objects, {sum(there.values()) / 1e6:.1f} MB"
    for place in ("From HyP3, in your bucket", f"s3://{BUCKET}"):
        assert (links[place].state, links[place].facts) == ("there", facts)
    assert links["HyP3 jobs"].facts == "3 jobs: 2 succeeded, 1 failed"
    assert links["Hook orders"].state == "nothing yet"
    assert changing(sandbox) == []


def test_the_picture_has_every_fact_in_words(run_notebook):
    run = run_notebook(NAME, steps=["order", "catalogue"])
    assert run.outcome == "ok", run.error
    (picture,) = outputs(run.output, "image/png")
    alt = picture["metadata"]["image/png"]["alt"]
    assert set(run.results["chain"]) == {step[1] for step in chain._PLACES if step[0] in ("order", "catalogue")}
    assert all(f"{place}: {state} (" in alt for place, state in run.results["chain"].items())
    table = next(o["data"]["text/html"] for o in outputs(run.output, "text/html") if "HyP3 jobs" in str(o["data"]))
    assert all(place in table for place in run.results["chain"])


def test_live_without_credentials_it_sends_nothing_and_says_what_is_missing(sandbox, environment, tmp_path):
    env = live_environment(sandbox, environment) | dict.fromkeys(CREDENTIALS, "")
    sandbox.traffic.requests.clear()
    run = runner.run(NOTEBOOKS / NAME, output=tmp_path / NAME, deadline=60, env=env)
    assert run.outcome == "ok", run.error
    missing = {place for place, state in run.results["chain"].items() if state == "not configured"}
    on_disk = {"From Hook, on this disk", "Archive on this disk", "Zarr on this disk"}
    assert set(run.results["chain"]) - missing == on_disk
    text = (tmp_path / NAME).read_text()
    wanted = ("EARTHDATA_TOKEN", "AWS_SECRET_ACCESS_KEY", "DESP_PASSWORD", "RSPY_OWNER_ID", "CATALOG_API_URL")
    assert all(name in text for name in wanted) and "Talking to the LIVE service" in text
    assert sandbox.traffic.received() == []


@pytest.mark.parametrize("kind, state", [("expired-token", "refused"), ("error", "no answer")])
def test_live_and_refused_everywhere_it_goes_on_and_leaks_nothing(kind, state, sandbox, environment, tmp_path):
    env = live_environment(sandbox, environment)
    for service in ("hyp3", "identity", "catalog"):
        sandbox.traffic.fail(kind, service=service, times=1000)
    impatient = {"answer_within": 2.0} if kind == "error" else {}  # each error is tried again for seven seconds
    run = runner.run(NOTEBOOKS / NAME, impatient, output=tmp_path / "out" / NAME, html=True, deadline=60, env=env)
    assert run.outcome == "ok", run.error
    states = run.results["chain"]
    assert {states[place] for place in ("HyP3 jobs", "Hook orders", "Zarr at RS-PYTHON")} == {state}
    assert states["STAC catalogue"] == "nothing yet"
    assert leaks(tmp_path, secrets_in(env)) == []


@pytest.mark.parametrize("wrong, said", [
    ({"steps": ["oder"], "answer_within": 0.0}, ["step 'oder' is none of order", "no time to wait"]),
    ({"places": ["https://example.org", "s3://", ""]}, ["place 'https://example.org'", "place 's3://'", "place ''"]),
    ({"places": "outputs"}, ["places: expected list"]),
])  # fmt: skip
def test_wrong_parameters_are_refused_all_at_once(wrong, said, sandbox, open_notebook):
    with pytest.raises(Exception) as error:
        open_notebook(NAME, **wrong).run()
    assert all(words in str(error.value) for words in said), error.value
    assert sandbox.traffic.received() == []
