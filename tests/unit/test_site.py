"""What goes onto the web site, and what is refused; tests/setup/test_site.py looks at the site itself."""

import hashlib
import re
import runpy
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from helpers.parameters import RESULT_MIMETYPE

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def conf(tmp_path):
    """docs/conf.py of a project with one notebook, notebooks/one.ipynb, which has not been run yet."""
    pytest.importorskip("sphinx")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/conf.py").write_text((ROOT / "docs/conf.py").read_text())
    cells = [new_markdown_cell("# One", id="title"), new_code_cell("1", id="code")]
    for folder in ("notebooks", "outputs/demo"):
        (tmp_path / folder).mkdir(parents=True)
    nbformat.write(new_notebook(cells=cells), tmp_path / "notebooks/one.ipynb")
    return runpy.run_path(str(tmp_path / "docs/conf.py"))


@pytest.fixture
def app():
    return SimpleNamespace(env=SimpleNamespace(note_dependency=lambda path: None, alternative_texts={}))


def run(conf, *outputs, source="1", **metadata) -> None:
    cells = [new_markdown_cell("# One", id="title"), new_code_cell(source, id="code", metadata=metadata)]
    cells[1].outputs = list(outputs)
    nbformat.write(new_notebook(cells=cells), conf["EXECUTED"] / "one.ipynb")


def test_a_page_has_the_outputs_for_people_and_the_downloads(conf, app):
    result = new_output("display_data", {"text/plain": "a = 1", RESULT_MIMETYPE: {"name": "a", "value": 1}})
    picture = new_output("display_data", {"image/png": "YWJj"}, metadata={"image/png": {"alt": "A map of it"}})
    run(conf, result, picture, new_output("stream", text=f"in {conf['ROOT']}/outputs/first"))
    page = conf["executed"](app, "notebooks/one")
    assert [output.get("text") for output in page.cells[2].outputs] == [None, "in outputs/first"]
    assert app.env.alternative_texts == {hashlib.sha256(b"abc").hexdigest(): "A map of it"}
    assert "one.ipynb" in page.cells[1].source and "one.py" in page.cells[1].source


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (None, "is not there: run `make site`"),
        ({"source": "2"}, "from another one.ipynb: run `make demo`"),
        ({"error": True}, "ended with an error"),
    ],
)
def test_what_is_missing_old_or_failed_is_refused(conf, app, outputs, message):
    from sphinx.errors import ExtensionError

    if outputs is not None:
        error = [new_output("error", ename="E", evalue="e", traceback=[])] if outputs.pop("error", False) else []
        run(conf, *error, **outputs)
    with pytest.raises(ExtensionError, match=message):
        conf["executed"](app, "notebooks/one")


def test_an_error_that_is_part_of_the_lesson_is_shown(conf, app):
    run(conf, new_output("error", ename="E", evalue="e", traceback=[]), tags=["raises-exception"])
    assert conf["executed"](app, "notebooks/one").cells[2].outputs[0].ename == "E"


def test_the_links_for_hubs_open_a_notebook_that_is_there():
    links = re.findall(r"^https://.*urlpath=.*$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(links) == 2
    for link in links:
        (path,) = parse_qs(urlsplit(link).query)["urlpath"]
        assert path.startswith("lab/tree/")
        assert (ROOT / path.removeprefix("lab/tree/").removeprefix("REPOSITORY/")).is_file()
