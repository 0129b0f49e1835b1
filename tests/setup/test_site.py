"""`make site`: a web site that is whole, stays on its own server and can be read by everybody."""

import functools
import threading
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from bs4 import BeautifulSoup

from helpers.parameters import RESULT_MIMETYPE

from ..browser.lab import CHROMIUM
from .conftest import make
from .test_fresh_clone import pytestmark  # noqa: F401 - the same is needed

#: Texts of a link that do not say where it leads.
EMPTY_WORDS = {"", "here", "this", "link", "click here", "more"}
VIOLATIONS = {"resultTypes": ["violations"], "preload": False}
#: What axe-core looks for: everything, and in the dark what the dark can change.
AXE = {"light": VIOLATIONS, "dark": VIOLATIONS | {"runOnly": ["color-contrast", "link-in-text-block"]}}
#: What the theme's own frame does: its sidebar is in no landmark. It hides nothing from anybody.
THEMES_OWN = {"region"}


@pytest.fixture(scope="session")
def site(demo, clone, machine) -> Path:
    done = make(clone, machine, "site")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "helpers run" not in done.stdout, "the recipes have just been run"
    return clone / "outputs/site"


@pytest.fixture(scope="session")
def pages(site) -> dict[str, BeautifulSoup]:
    """The pages by their addresses within the site."""
    found = [path for path in site.rglob("*.html") if "_static" not in path.parts]
    return {str(path.relative_to(site)): BeautifulSoup(path.read_text(), "html.parser") for path in sorted(found)}


@pytest.fixture(scope="session")
def executed(demo, clone) -> dict[str, nbformat.NotebookNode]:
    """The executed notebooks by their names without ending."""
    return {path.stem: nbformat.read(path, as_version=4) for path in sorted((clone / "outputs/demo").glob("*.ipynb"))}


def content(page: BeautifulSoup) -> BeautifulSoup:
    """What is ours on a page, without the theme's frame."""
    return page.find("article") or page.body


def test_there_is_a_page_for_all_that_is_to_be_read(pages, clone):
    wanted = {"README", "CHANGELOG", "CONTRIBUTING", "search", "index"}
    wanted |= {f"notebooks/{path.stem}" for path in (clone / "notebooks").glob("*.ipynb")}
    wanted |= {f"docs/{path.stem}" for path in (clone / "docs").glob("*.md")}
    assert set(pages) == {f"{name}.html" for name in wanted}
    menu = {a["href"] for a in pages["README.html"].select(".bd-sidebar-primary a.reference")}
    assert {f"{name}.html" for name in wanted - {"README", "search", "index"}} <= menu


def test_each_link_leads_somewhere(pages, site):
    anchors = {name: {tag["id"] for tag in page.find_all(id=True)} for name, page in pages.items()}
    broken = []
    for name, page in pages.items():
        tags = [(tag, tag.get("href") or tag.get("src")) for tag in page.find_all(["a", "link", "img", "script"])]
        for address in {address for _, address in tags if address}:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (site / name).parent.joinpath(unquote(parts.path)) if parts.path else site / name
            there = str(target.resolve().relative_to(site.resolve()))
            if not target.is_file() or (parts.fragment and parts.fragment not in anchors.get(there, ())):
                broken.append(f"{name}: {address}")
    assert not [link for link in broken if not link.endswith("#")], "the theme's own buttons are links to #"


def test_a_page_loads_nothing_from_elsewhere(pages):
    loading = [
        f"{name}: {tag[attribute]}"
        for name, page in pages.items()
        for selector, attribute in (("[src]", "src"), ("link[href]", "href"), ("object[data]", "data"))
        for tag in page.select(selector)
        if urlsplit(tag[attribute]).netloc
    ]
    assert not loading


def test_a_notebook_page_shows_what_the_notebook_left(pages, executed, clone):
    for name, notebook in executed.items():
        page = content(pages[f"notebooks/{name}.html"])
        shown = {img.get("alt", "") for img in page.select(".cell_output img")}
        assert shown == set(alternative_texts(notebook)), name
        text = " ".join(page.get_text().split())
        for cell in notebook.cells:
            for output in cell.get("outputs", ()):
                if output.output_type == "stream":
                    last = output.text.strip().splitlines()[-1].replace(f"{clone}/", "")
                    assert " ".join(last.split()) in text, last


def test_what_is_recorded_for_machines_is_not_on_the_page(pages, executed):
    recorded = 0
    for name, notebook in executed.items():
        text = content(pages[f"notebooks/{name}.html"]).get_text()
        for cell in notebook.cells:
            for output in cell.get("outputs", ()):
                if RESULT_MIMETYPE in output.get("data", {}):
                    recorded += 1
                    assert output.data["text/plain"] not in text
    assert recorded > 10
    assert not [name for name, page in pages.items() if "vnd.eo-recipes" in str(page)]


def test_each_notebook_can_be_downloaded_as_it_is_and_as_a_script(pages, executed, clone, site):
    for name in executed:
        page, here = pages[f"notebooks/{name}.html"], site / "notebooks"
        files = {Path(a["href"]).name: (here / a["href"]).resolve() for a in page.select("a.download")}
        assert files[f"{name}.ipynb"].read_bytes() == (clone / f"notebooks/{name}.ipynb").read_bytes()
        script = files[f"{name}.py"].read_text()
        compile(script, name, "exec")
        parameters = next(c for c in executed[name].cells if "parameters" in c.metadata.get("tags", ()))
        assert parameters.source in script


def test_nothing_tells_of_the_machine(site, clone, machine):
    """What a recipe said about a folder is there, but from the project's top on."""
    private = [str(clone), str(clone.parent), machine["HOME"], str(Path.home()) + "/"]
    for path in site.rglob("*"):
        if path.suffix in {".html", ".js", ".ipynb", ".py", ".inv", ".json"} and "_static" not in path.parts:
            text = path.read_text(errors="replace")
            assert not [where for where in private if where in text], path
    assert "outputs/archive-on-disk/" in (site / "notebooks/4_archive_to_disk.html").read_text()


# --- for everybody ---


def alternative_texts(notebook) -> list[str]:
    return [
        output.metadata.get("image/png", {}).get("alt", "")
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", {})
    ]


def test_each_picture_of_an_executed_notebook_has_a_text_that_says_something(executed):
    texts = {name: alternative_texts(notebook) for name, notebook in executed.items()}
    assert sum(map(len, texts.values())) >= 10
    assert not {name: told for name, told in texts.items() if any(len(text.split()) < 4 for text in told)}


def test_each_picture_on_a_page_has_a_text(pages):
    for name, page in pages.items():
        assert not [img for img in content(page).find_all("img") if not img.get("alt", "").strip()], name


def test_headings_are_in_order(pages):
    for name, page in pages.items():
        levels = [int(tag.name[1]) for tag in content(page).find_all(["h1", "h2", "h3", "h4", "h5", "h6"])]
        assert levels[0] == 1 and levels.count(1) == 1, name
        assert all(after <= before + 1 for before, after in pairwise(levels)), (name, levels)


def test_tables_have_headers(pages):
    for name, page in pages.items():
        for table in content(page).find_all("table"):
            headers = table.find_all("th")
            assert headers, (name, table.get_text()[:80])
            assert all(header.get_text(strip=True) for header in headers), (name, str(table)[:200])


def test_links_say_where_they_lead(pages):
    for name, page in pages.items():
        for link in content(page).select("a[href]:not(.headerlink)"):
            said = link.get_text(strip=True) or " ".join(img["alt"] for img in link.find_all("img"))
            assert said.lower() not in EMPTY_WORDS, (name, str(link))


# --- in a browser ---


@contextmanager
def served(folder: Path):
    """The address of a web server for a folder."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def judged(name: str, theme: str) -> dict:
    """Where axe-core looks: at two pages as wholes, of the others at what is theirs alone.

    The theme's frame, and its colours of text and code, are the same everywhere, and to judge them takes seconds.
    """
    if name.startswith(("README", "search")):
        return {}
    return {"include": [["article" if theme == "light" else ".cell_output"]], "exclude": [[".highlight"]]}


@pytest.fixture(scope="session")
def seen(site, pages, chromium) -> dict:
    """What a browser met: requests, complaints, faults of accessibility, finds. Closed before any test looks at it."""
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import sync_playwright

    axe = Axe()
    met = {"requests": [], "complaints": [], "faults": [], "hits": {}, "buttons": {}}
    with sync_playwright() as playwright, served(site) as address:
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM)
        context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
        page = context.new_page()
        page.on("request", lambda request: met["requests"].append(request.url.replace(address, "./")))
        page.on("pageerror", lambda error: met["complaints"].append(f"{page.url}: {error}"))
        page.on("response", lambda got: got.status < 400 or met["complaints"].append(f"{got.url}: {got.status}"))
        page.on("console", lambda said: said.type == "error" and met["complaints"].append(f"{page.url}: {said.text}"))
        for name in sorted(set(pages) - {"index.html"}):  # that leads away at once
            page.goto(address + name)
            page.add_style_tag(content="* { transition: none !important }")  # colours that change are none to judge
            met["buttons"][name] = page.locator("button.copybtn").count()
            for theme, options in AXE.items():
                page.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
                where = judged(name, theme)
                if where.get("include") and not page.locator(where["include"][0][0]).count():
                    continue
                for fault in axe.run(page, context=where, options=options).response["violations"]:
                    places = "; ".join(node["html"][:100] for node in fault["nodes"][:3])
                    met["faults"].append((fault["id"], f"{name}, {theme}: {fault['help']}: {places}"))
        page.goto(address)
        page.wait_for_url("**/README.html")
        page.locator("button.copybtn").first.click()
        met["copied"] = page.evaluate("navigator.clipboard.readText()")
        from_disk = context.new_page()  # where it may not fetch the lines around what it finds, and says so
        for way, tab, start in (("served", page, address), ("from the disk", from_disk, f"{site.as_uri()}/")):
            tab.goto(f"{start}search.html?q=policy")
            tab.wait_for_selector("#search-results li a")
            met["hits"][way] = tab.locator("#search-results li a").all_inner_texts()
            tab.wait_for_load_state("networkidle")  # it still fetches lines of what it found
        browser.close()
    return met


def test_a_browser_asks_nobody_else(seen):
    elsewhere = [url for url in seen["requests"] if not url.startswith(("./", "data:"))]
    assert len(seen["requests"]) > 100 and not elsewhere


def test_a_browser_has_nothing_to_complain_of(seen):
    assert not seen["complaints"]


def test_axe_finds_no_fault_in_light_or_dark(seen):
    assert not [told for rule, told in seen["faults"] if rule not in THEMES_OWN]


@pytest.mark.parametrize("how", ["served", "from the disk"])
def test_the_search_finds(seen, how):
    assert any("HyP3" in title for title in seen["hits"][how])


def test_code_can_be_copied(seen, executed):
    assert "make demo" in seen["copied"]
    for name, notebook in executed.items():
        code = sum(cell.cell_type == "code" for cell in notebook.cells)
        assert seen["buttons"][f"notebooks/{name}.html"] >= code
