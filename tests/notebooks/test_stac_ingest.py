"""Notebook 6 end to end, in real kernels: what is in the catalogue, the bucket and the queues afterwards."""

import nbformat
import pystac_client
import pytest

from helpers import catalog, objectstore, runner
from helpers.sandbox import Deployment, Sandbox
from helpers.state import RunState

from ..conftest import NOTEBOOKS

NAME = "6_stac_ingest.ipynb"
BUCKET = "eo-catalogue-123456789012"
#: For a run that only loads.
PLAIN = {"break_things": False, "take_in": False}


@pytest.fixture
def clients(settings):
    return {name: objectstore.client(name, settings) for name in ("s3", "sns", "sqs")}


@pytest.fixture
def store(settings):
    settings.require("catalog")
    with catalog.connect(settings) as store:
        yield store


def keys(clients, prefix: str = "") -> list[str]:
    return sorted(objectstore.objects(clients["s3"], BUCKET, prefix))


@pytest.mark.slow
def test_load_break_repair_and_once_more(sandbox, settings, run_notebook, store, clients):
    """With what is broken on purpose; again, which changes nothing; and all of it undone."""
    first = run_notebook(NAME)
    assert first.outcome == "ok", first.error
    assert first.results["products"] == first.results["loaded"]["stored"] == 4
    api = pystac_client.Client.open(str(settings.catalog_api_url))
    items = {item.id: item for item in api.search(collections=["my-products"]).items()}
    assert sorted(items) == first.results["items"] and len(items) == 4
    rasters = {asset.href for item in items.values() for asset in item.assets.values()}
    products = keys(clients, "products/first-catalogue/")
    assert {f"s3://{BUCKET}/{key}" for key in products} == rasters
    assert keys(clients, "items/") == [f"items/first-catalogue/my-products/{name}.json" for name in sorted(items)]
    said = "".join(str(cell.get("outputs")) for cell in nbformat.read(first.output, as_version=4).cells)
    assert "1 object written anew" in said and "no difference is left" in said
    before = {name: store.item("my-products", name) for name in items}

    sandbox.traffic.requests.clear()
    again = run_notebook(NAME, **PLAIN)
    assert again.outcome == "ok", again.error
    assert again.results["loaded"] == {"stored": 0, "failed": 0, "in": 4}
    assert {name: store.item("my-products", name) for name in items} == before
    assert not [r for r in sandbox.traffic.received("s3", "PUT|DELETE", f"^/{BUCKET}/")]

    # Another run has the same products, and one of its own; each cleans up after itself.
    other = run_notebook(NAME, **PLAIN | {"samples": 5, "run_id": "other"})
    assert other.outcome == "ok", other.error
    assert other.results["loaded"]["in"] == 5
    held = run_notebook(NAME, **PLAIN)
    assert held.outcome == "ok", held.error
    counts = catalog.clean_up(RunState(settings, "catalog", "other", cleaning=True), settings)
    assert (counts["items"], counts["collections"], store.count("my-products")) == (1, 0, 4)

    gone = run_notebook(NAME, **PLAIN, clean_up=True)
    assert gone.outcome == "ok", gone.error
    assert store.collections() == {} and keys(clients) == []
    assert clients["sns"].list_topics()["Topics"] == []
    assert "QueueUrls" not in clients["sqs"].list_queues()
    left = clients["s3"].get_bucket_notification_configuration(Bucket=BUCKET)
    assert not [name for name in left if name.endswith("Configurations")]


@pytest.mark.slow
def test_it_takes_in_what_the_others_made(sandbox, run_notebook, store):
    """Delivered by HyP3 (1), archived on this disk (4): one item for each product, whoever made it."""
    delivered = run_notebook("1_hyp3_user_bucket.ipynb")
    archived = run_notebook("4_archive_to_disk.ipynb", dry_run=False)
    assert delivered.outcome == archived.outcome == "ok", delivered.error or archived.error
    run = run_notebook(NAME, samples=0, break_things=False)
    assert run.outcome == "ok", run.error
    names = run.results["items"]
    assert sum("_INT80_" in name for name in names) == len(delivered.results["products"])
    assert sum(name.endswith("_WM") for name in names) == 10
    assert store.count("my-products") == len(names)


@pytest.mark.slow
def test_on_a_machine_without_postgis(tmp_path):
    """The same on the embedded store, which says what it is."""
    with Sandbox(deployment=Deployment(catalogue="embedded")) as sandbox:
        env = {"RECIPES_BACKEND": "sandbox", "RECIPES_SANDBOX_URL": sandbox.url("control")}
        env |= {"RECIPES_STATE_DIR": str(tmp_path / "state"), "RECIPES_OUTPUT_DIR": str(tmp_path / "outputs")}
        wanted = {"run_id": "embedded"}  # the queues of all sandboxes of one process are in one place
        run = runner.run(NOTEBOOKS / NAME, wanted, output=tmp_path / NAME, deadline=120, env=env)
    assert run.outcome == "ok", run.error
    assert run.results["loaded"] == {"stored": 4, "failed": 0, "in": 4}
    assert "catalogue: embedded" in (tmp_path / NAME).read_text()


@pytest.mark.parametrize("wrong, said", [
    ({"collection": "a b"}, ["collection 'a b': use letters"]),
    ({"samples": -1, "run_id": "../x"}, ["samples: -1", "run_id '../x'"]),
    ({"bucket": "No_Name", "collection": ""}, ["bucket 'No_Name'", "collection ''"]),
])  # fmt: skip
def test_wrong_parameters_are_refused_before_anything_is_made(wrong, said, sandbox, open_notebook, clients):
    from helpers.errors import Rejected

    with pytest.raises(Rejected) as error:
        open_notebook(NAME, **wrong).run(until="notebook.setup(")
    assert all(words in str(error.value) for words in said)
    assert BUCKET not in [bucket["Name"] for bucket in clients["s3"].list_buckets()["Buckets"]]


def test_with_nothing_to_catalogue_nothing_is_made(sandbox, open_notebook, clients):
    with pytest.raises(AssertionError, match="nothing to catalogue"):
        open_notebook(NAME, samples=0, take_in=False).run(until="nothing to catalogue")
    assert clients["sns"].list_topics()["Topics"] == []


def test_an_address_that_is_no_stac_api_is_refused_before_anything_is_made(sandbox, open_notebook, monkeypatch):
    from helpers.errors import NotConfigured
    from helpers.settings import Settings

    wrong = property(lambda settings: sandbox.url("hyp3"))
    monkeypatch.setattr(Settings, "catalog_api_url", wrong, raising=False)
    with pytest.raises(NotConfigured, match=r"CATALOG_API_URL: what answers at .* is no STAC API"):
        open_notebook(NAME).run(until="pystac_client.Client.open")


def test_a_source_that_is_not_there_is_named(sandbox, open_notebook, tmp_path):
    from helpers.errors import Rejected

    with pytest.raises(Rejected, match=r"(?s)2 problems.*no/such/folder.*s3://nobody"):
        sources = ["no/such/folder", "s3://nobody/x"]
        open_notebook(NAME, sources=sources, samples=0, take_in=False).run(until="catalog.wanted(")
