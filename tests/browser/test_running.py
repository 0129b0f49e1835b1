"""Each notebook in a real JupyterLab, as a person runs it: opened, Run All, looked at."""

import pytest

from ..conftest import notebook_files
from .lab import boxes, colours

HYP3, ARCHIVE = "1_hyp3_user_bucket.ipynb", "3_archive_to_s3.ipynb"

#: Markup of those outputs that take no room.
EMPTY = "all => all.filter(node => !(node.offsetHeight && node.offsetWidth)).map(node => node.outerHTML.slice(0, 300))"


@pytest.mark.parametrize("name", [pytest.param(path.name, id=path.stem) for path in notebook_files()])
def test_runs(name, lab):
    """Run All from the menu, to the end and without an error; and there is something to see."""
    notebook = lab.open(name)
    if name[0] == "5":  # without what takes the longest; as a person would do it
        notebook.run_to("form")
        notebook.field("overviews").uncheck()
    notebook.run_all()
    notebook.wait()
    lab.screenshot()
    assert colours(notebook.whole_picture("whole")) > 100

    saved = notebook.save()
    counts = [cell.execution_count for cell in saved.cells if cell.cell_type == "code"]
    assert counts == list(range(counts[0], counts[0] + len(counts)))
    shown = notebook.panel.locator(".jp-Cell-outputArea > .jp-OutputArea-child > .jp-OutputArea-output")
    assert shown.count() > len(counts) / 2
    assert shown.evaluate_all(EMPTY) == [], "outputs without anything to see"
    for picture in shown.locator("img").all():
        picture.scroll_into_view_if_needed()
        assert picture.evaluate("img => img.complete && img.naturalWidth") > 100
        assert all(width > 100 and height > 50 for width, height in boxes(picture))
        assert colours(picture.screenshot()) > 20, "a blank picture"


def test_reload_in_the_middle_and_carry_on(lab, sandbox):
    """The page is gone while the jobs run: kernel, outputs and form are there again, and nothing is ordered twice."""
    sandbox.hyp3.processor.running = 4.0  # long enough to be in the middle of
    notebook = lab.open(HYP3)
    notebook.run_to("form")
    notebook.field("job_name").fill("reloaded")
    notebook.page.keyboard.press("Tab")
    notebook.run_all()
    notebook.see(lambda: len(sandbox.hyp3.jobs) == 3)
    kernel = notebook.kernel()
    notebook.save()
    lab.reload()

    notebook.wait_until_shown()
    assert notebook.kernel() == kernel
    assert "zagros-coast" in notebook.source("parameters")
    setup = notebook.with_text("notebook.setup(")
    assert "SANDBOX" in notebook.output(setup).inner_text()
    field = notebook.field("job_name")
    field.scroll_into_view_if_needed()
    assert field.input_value() == "reloaded"
    lab.screenshot()
    notebook.run_all()
    notebook.wait()
    assert [job["name"] for job in sandbox.hyp3.jobs.values()] == ["reloaded"] * 3
    assert notebook.field("job_name").input_value() == "reloaded"


def test_two_at_once(lab, sandbox):
    """Two notebooks run side by side in two kernels, and both end well."""
    first = lab.open(HYP3)
    first.run_all()
    second = lab.open(ARCHIVE)
    second.run_all()
    first.wait()
    second.wait()
    assert first.kernel() != second.kernel()
    own = [job for job in sandbox.hyp3.jobs.values() if job["name"] == "zagros-coast"]
    assert len(own) == 3
    lab.screenshot()
