"""The form of the parameters, used as a person uses it: click, type, Tab, look."""

import json

import nbformat
import pytest
import yaml

from helpers.parameters import declared

SAVE_STATE = "@jupyter-widgets/jupyterlab-manager:saveWidgetState"
HYP3, HOOK = "1_hyp3_user_bucket.ipynb", "2_hook_data_harvest.ipynb"


def in_force(notebook, parameter: str) -> str:
    """What the setup cell's table says of a parameter, after running it."""
    setup = notebook.with_text("notebook.setup(")
    notebook.run(setup)
    row = notebook.output(setup).locator("tr").filter(has=notebook.page.get_by_text(parameter, exact=True))
    return row.locator("td, th").last.inner_text()


@pytest.fixture
def notebook(lab):
    """Notebook 1, run as far as the form."""
    notebook = lab.open(HYP3)
    notebook.run_to("form")
    return notebook


def test_what_is_typed_arrives_at_the_service_and_outlasts_run_all(notebook, lab, sandbox):
    notebook.field("job_name").click()
    notebook.page.keyboard.press("ControlOrMeta+A")
    notebook.page.keyboard.type("typed-by-hand")
    notebook.page.keyboard.press("Tab")
    notebook.row("job_name").locator(".recipes-changed").wait_for()
    lab.screenshot()
    notebook.run_all()
    notebook.wait()
    assert {job["name"] for job in sandbox.hyp3.jobs.values()} == {"typed-by-hand"}
    assert notebook.field("job_name").input_value() == "typed-by-hand"
    assert declared(notebook.source("parameters"))["job_name"].default == "zagros-coast", "the cell is left alone"


def test_a_value_that_does_not_fit_is_named_and_not_used(notebook, lab):
    field, row = notebook.field("max_credits"), notebook.row("max_credits")
    field.fill("plenty")
    problem = row.locator(".recipes-problem")
    problem.wait_for()
    assert "plenty" in problem.inner_text() and "50" in problem.inner_text()
    problem.scroll_into_view_if_needed()
    lab.screenshot("wrong")
    with pytest.raises(AssertionError, match="max_credits: in the form, expected float, got 'plenty'"):
        in_force(notebook, "max_credits")  # who typed a limit does not go on without it
    field.fill("60.5")
    notebook.page.keyboard.press("Tab")
    problem.wait_for(state="detached")
    assert in_force(notebook, "max_credits") == "60.5"
    notebook.panel.get_by_role("button", name="Back to the cell's values").click()
    row.locator(".recipes-changed").wait_for(state="detached")
    assert (field.input_value(), in_force(notebook, "max_credits")) == ("50", "50")


def test_copy_as_yaml_gives_a_parameter_file(lab):
    notebook = lab.open(HOOK)
    notebook.run_to("form")
    notebook.field("storage").press_sequentially("PRIV")  # JupyterLab must not take these for shortcuts of its own
    notebook.field("create_bucket").uncheck()
    notebook.panel.get_by_role("button", name="Copy as YAML").click()
    notebook.panel.get_by_text("Copied to the clipboard").wait_for()
    text = notebook.page.evaluate("() => navigator.clipboard.readText()")
    assert yaml.safe_load(text) == {"storage": "PRIVATE", "create_bucket": False}
    assert "python -m helpers run" in text
    assert notebook.panel.locator(".recipes-yaml textarea").input_value() == text
    lab.screenshot()


@pytest.fixture
def with_widget_state(lab):
    """Settings > Save Widget State Automatically: documents then hold what is in every field."""
    lab.menu("Settings", SAVE_STATE)
    yield
    lab.page.evaluate("command => jupyterapp.commands.execute(command)", SAVE_STATE)


def test_secrets_are_typed_beneath_the_error_and_are_in_no_document(lab, sandbox, with_widget_state):
    """A live run without credentials; and a token in the wrong field."""
    addresses = {name: sandbox.environment[name] for name in ("HYP3_API_URL", "AWS_ENDPOINT_URL", "AWS_REGION")}
    secrets = {"EARTHDATA_TOKEN": sandbox.environment["EARTHDATA_TOKEN"]}
    secrets |= {name: f"canary-of-{name.lower()}" for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    file = lab.server.files / lab.name / HYP3
    document = nbformat.read(file, as_version=4)
    source = f"import os\n\nos.environ.update({addresses | {'RECIPES_BACKEND': 'live'}})"
    document.cells.insert(0, nbformat.v4.new_code_cell(source))
    nbformat.write(document, file)
    notebook = lab.open(HYP3)
    notebook.run_to("form")
    notebook.field("job_name").fill(secrets["EARTHDATA_TOKEN"])
    notebook.row("job_name").get_by_text("looks like a secret").wait_for()
    notebook.see(lambda: notebook.field("job_name").input_value() == "")

    setup = notebook.with_text("notebook.setup(")
    with pytest.raises(AssertionError, match="NotConfigured"):
        notebook.run(setup)
    kinds = [output["output_type"] for output in notebook.outputs(setup)]
    assert kinds.index("error") < kinds.index("display_data"), "the fields are beneath the error"
    form = notebook.part(".recipes-credentials")
    for name, secret in secrets.items():
        field = form.get_by_label(name, exact=True)
        field.click()
        notebook.page.keyboard.insert_text(secret)
        notebook.page.keyboard.press("Tab")
        form.get_by_text(f"{name} is in use.").wait_for()
        notebook.see(lambda field=field: field.input_value() == "")
    form.get_by_text("Everything is there. Run the setup cell again.").scroll_into_view_if_needed()
    lab.screenshot("credentials")
    states = json.dumps(notebook.save().metadata.widgets)
    assert "EARTHDATA_TOKEN" in states and "is in use." in states
    notebook.field("job_name").fill("no secret")
    notebook.row("job_name").locator(".recipes-problem").wait_for(state="detached")
    notebook.run(setup)
    assert "Talking to the LIVE service" in notebook.output(setup).inner_text()
    notebook.save()
    assert [name for name, secret in secrets.items() if secret in file.read_text()] == []
