"""Our parts in both themes, in a narrow window, without a mouse, and for those who do not see the page."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from .lab import boxes, colours

if TYPE_CHECKING:
    from playwright.sync_api import Locator

HYP3, ARCHIVE = "1_hyp3_user_bucket.ipynb", "3_archive_to_s3.ipynb"
PARTS = (".recipes-form", ".recipes-board", ".recipes-progress", ".recipes-map")

#: Everything in a part that sticks out of it to the right, or out of the notebook, by its markup.
STICKING_OUT = """part => {
    const right = node => node.getBoundingClientRect().right;
    const edge = Math.min(right(part), right(part.closest('.jp-Notebook'))) + 4;  // a frame's width
    return [...part.querySelectorAll(':not(.leaflet-container *)')].filter(node => {
        const box = node.getBoundingClientRect()
        return box.width && box.height && box.right > edge && getComputedStyle(node).overflowX !== 'auto'
    }).map(node => node.outerHTML.slice(0, 200)) }"""


@pytest.mark.parametrize("theme", ["JupyterLab Light", "JupyterLab Dark"])
def test_parts_can_be_read_in_every_theme_and_by_everyone(lab, theme):
    """axe-core finds nothing serious: names of inputs, roles, contrast in this theme."""
    lab.theme(theme)
    notebook = lab.open(HYP3)
    notebook.run_to("form")
    notebook.field("max_credits").fill("plenty")
    notebook.field("job_name").fill("another")
    notebook.panel.locator(".recipes-problem").wait_for()
    notebook.panel.get_by_role("button", name="Copy as YAML").click()
    notebook.panel.get_by_text("Copied to the clipboard").wait_for()
    lab.screenshot("wrong")
    assert lab.violations(".recipes-form") == [], "with a value that does not fit, and the text to copy"
    notebook.field("max_credits").fill("60")
    notebook.panel.locator(".recipes-problem").wait_for(state="detached")
    notebook.run_all()
    notebook.wait()
    for part in PARTS:
        found = notebook.part(part)
        lab.screenshot(part.removeprefix(".recipes-"))
        assert lab.violations(part) == [], part
        assert colours(found.screenshot()) > 5, part
        assert all(width > 300 and height > 15 for width, height in boxes(found)), part


def test_a_narrow_window_cuts_nothing_off(lab):
    """600 pixels, the file browser folded away: nothing of ours sticks out to the right."""
    notebook = lab.open(HYP3)
    lab.page.keyboard.press("ControlOrMeta+B")
    lab.page.set_viewport_size({"width": 600, "height": 900})
    notebook.run_all()
    notebook.wait()
    for part in PARTS:
        found = notebook.part(part)
        lab.screenshot(part.removeprefix(".recipes-"))
        assert found.evaluate(STICKING_OUT) == [], part
        assert colours(found.screenshot()) > 5, part
    lab.page.set_viewport_size({"width": 1280, "height": 900})
    lab.page.keyboard.press("ControlOrMeta+B")


def test_the_keyboard_is_enough(lab, sandbox):
    """Run a notebook to its form, change a text, a choice and a box, run all of it: with keys alone."""
    keys = lab.page.keyboard
    notebook = lab.open(ARCHIVE)
    ids = notebook._ask("panel.content.widgets.map(cell => cell.model.id)")
    notebook.begin()
    for _ in range(ids.index("form") + 1):
        keys.press("Shift+Enter")
    notebook.wait(["parameters", "form"])
    keys.press("ArrowUp")

    def tab_to(parameter: str) -> Locator:
        field = notebook.field(parameter)
        for _ in range(80):
            if field.evaluate("node => node === document.activeElement"):
                return field
            keys.press("Tab")
        raise AssertionError(f"Tab does not lead to {parameter}")

    notebook.field("prefix").wait_for()
    tab_to("prefix")
    keys.type("by-keys")
    choice = tab_to("clash")
    was = choice.input_value()
    keys.press("ArrowDown")
    assert choice.input_value() != was
    keys.press("ArrowUp")
    assert choice.input_value() == was
    tab_to("dry_run")
    keys.press("Space")
    lab.screenshot()
    still = notebook._ask("panel.content.widgets.map(cell => cell.model.id)")
    assert still == ids, "a key was taken for a shortcut of JupyterLab"
    notebook.begin()
    lab.palette("Run All Cells")
    notebook.wait()
    assert (notebook.field("prefix").input_value(), notebook.field("dry_run").is_checked()) == ("by-keys", False)
    assert sandbox.traffic.received("s3", "PUT"), "it was no dry run"
