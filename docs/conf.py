"""The web site: README, the pages beside this file and the executed notebooks, by Sphinx. `make site` builds it.

The repository itself is the source, so that a link from one file to another works in JupyterLab, on a forge and on the
site. Where Sphinx would read a notebook, it is given the executed one of outputs/demo.
"""

import hashlib
from base64 import b64decode
from pathlib import Path

import nbformat
from docutils import nodes
from nbconvert import PythonExporter
from sphinx import addnodes
from sphinx.errors import ExtensionError

from helpers.parameters import RESULT_MIMETYPE

ROOT = Path(__file__).resolve().parents[1]
EXECUTED, SCRIPTS = ROOT / "outputs/demo", ROOT / "outputs/.site/scripts"

project = "EO Cloud Recipes"
author = "EO Cloud Recipes contributors"
copyright = author
language = "en"
root_doc = "README"
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "notebooks/*.ipynb"]
exclude_patterns = [".*", "outputs", "**/.ipynb_checkpoints"]
extensions = ["myst_nb", "sphinx_copybutton"]
nb_execution_mode = "off"
myst_heading_anchors = 4

html_theme = "sphinx_book_theme"
html_title = project
html_extra_path = ["site/index.html"]  # leads to README.html
html_favicon = "site/icon.svg"
html_context = {"default_mode": "auto"}  # light or dark, as the reader's system is
html_theme_options = {"use_download_button": False, "use_fullscreen_button": False, "navbar_persistent": []}
html_copy_source = False  # it would be a second copy of the notebooks
html_use_index = False
copybutton_selector = "div.highlight pre:not(.cell_output *)"  # what one runs, not what came out

CONTENTS = """

```{toctree}
:hidden:
:glob:
:caption: Recipes
notebooks/*
```

```{toctree}
:hidden:
:glob:
:caption: In use
docs/*
```

```{toctree}
:hidden:
:caption: The project
CONTRIBUTING
CHANGELOG
```
"""
DOWNLOADS = """\
Download [the notebook](path:{name}.ipynb), or [the same as a plain script](path:/outputs/.site/scripts/{name}.py).
Both run in the environment that [two commands](../README.md#two-commands) make. This page shows what the notebook left
behind when it was run in the sandbox.
"""


def read(app, docname: str, source: list[str]) -> None:
    """What Sphinx reads: of a notebook, the executed one."""
    if docname == root_doc:
        source[0] += CONTENTS
    elif docname.startswith("notebooks/"):
        source[0] = nbformat.writes(executed(app, docname))


def executed(app, docname: str) -> nbformat.NotebookNode:
    """The executed notebook with links to its downloads, and without what is for machines."""
    clean, path = ROOT / f"{docname}.ipynb", EXECUTED / f"{Path(docname).name}.ipynb"
    if not path.exists():
        raise ExtensionError(f"{path} is not there: run `make site`, which runs the notebooks first")
    app.env.note_dependency(str(path))
    notebook = nbformat.read(path, as_version=4)
    sources = [cell.source for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", ())]
    if sources != [cell.source for cell in nbformat.read(clean, as_version=4).cells]:
        raise ExtensionError(f"{path} was made from another {clean.name}: run `make demo`")
    for cell in notebook.cells:
        outputs = [output for output in cell.get("outputs", ()) if RESULT_MIMETYPE not in output.get("data", ())]
        if any(output.output_type == "error" for output in outputs) and not fails_on_purpose(cell):
            raise ExtensionError(f"{path} ended with an error: mend it and run `make demo`")
        for output in outputs:
            hide_machine(output)
            if png := output.get("data", {}).get("image/png"):
                alt = output.metadata.get("image/png", {}).get("alt", "")
                app.env.alternative_texts[hashlib.sha256(b64decode(png)).hexdigest()] = alt
        if "outputs" in cell:
            cell.outputs = outputs
    notebook.cells.insert(1, nbformat.v4.new_markdown_cell(DOWNLOADS.format(name=clean.stem), id="downloads"))
    return notebook


def hide_machine(output: nbformat.NotebookNode) -> None:
    """Begin paths at the project's top: where that is on this machine is nobody's business."""
    data, here = output.get("data", {}), f"{ROOT}/"
    data.update({kind: text.replace(here, "") for kind, text in data.items() if kind.startswith("text/")})
    if "text" in output:
        output.text = output.text.replace(here, "")
    if "traceback" in output:
        output.evalue = output.evalue.replace(here, "")
        output.traceback = [line.replace(here, "") for line in output.traceback]


def fails_on_purpose(cell: nbformat.NotebookNode) -> bool:
    return "raises-exception" in cell.metadata.get("tags", ())


def write_scripts(app) -> None:
    """Each notebook as `jupyter nbconvert --to script` makes it."""
    SCRIPTS.mkdir(parents=True, exist_ok=True)
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        script, _ = PythonExporter().from_filename(notebook)
        (SCRIPTS / f"{notebook.stem}.py").write_text(script, encoding="utf-8")
    app.env.alternative_texts = getattr(app.env, "alternative_texts", {})


def mend(app, document: nodes.document) -> None:
    """What MyST-NB drops or MyST-Parser does not know.

    Pictures, which are named by their hashes, get the texts that their outputs have; and links to what is in the
    repository but not on the site, such as folders, become plain text.
    """
    for image in document.findall(nodes.image):
        if alt := app.env.alternative_texts.get(Path(image["uri"]).stem):
            image["alt"] = alt
    for link in list(document.findall(addnodes.pending_xref)):
        if (ROOT / link["refdoc"]).parent.joinpath(link["reftarget"]).is_dir():
            link.replace_self(link.children)


def setup(app) -> None:
    """Sphinx calls this."""
    app.connect("builder-inited", write_scripts)
    app.connect("source-read", read)
    app.connect("doctree-read", mend)
