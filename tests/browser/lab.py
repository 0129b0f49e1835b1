"""A JupyterLab that is used as a person uses it: opened, clicked, typed into, looked at.

What a person would do goes through the page (menus, keys, fields). What a person would see with one glance, such as
"everything has run", is asked of JupyterLab's own model, which says so at once and for each cell.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import uuid4

import nbformat
import requests

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Request

ROOT = Path(__file__).resolve().parents[2]
SCREENSHOTS = ROOT / "outputs/screenshots"
TOKEN = "browser-tests"
WIDTH, HEIGHT = 1280, 900
#: Milliseconds that a person would wait for the page to do something, and for a notebook to end.
REACTION, RUN = 20_000, 150_000

#: Started so that it talks to nobody, asks nothing, and works where there is no graphics card, sandbox of the kernel's
#: or large /dev/shm: in containers, as root.
CHROMIUM = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
#: Settings of JupyterLab, by plug-in: no questions on the first day, no look at the network.
PREFERENCES: dict[str, dict] = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True},
    "extensionmanager-extension/plugin": {"enabled": False},
}
#: What the page may say although nothing of ours is wrong, and why.
TOLERATED = {
    "Could not send widget sync message Error: Cannot send": "ipyleaflet's map still hears of the window's new size"
    " when its notebook has been closed, and wants to tell the kernel, which has ended",
}

#: The document in front, or the one of a path; as JavaScript, beginning the body of a function of `path`.
PANEL = "const panel = [...jupyterapp.shell.widgets('main')].find(w => w.context?.path === path);"


class Server:
    """A Jupyter server on a free port, with folders of its own: nothing is read from or written to the user's.

    Parameters
    ----------
    folder:
        Empty; what the server serves is in ``files`` in it, the recipes' state and outputs are beside that.
    environment:
        Added to that of this process, for the server and its kernels.
    """

    def __init__(self, folder: Path, environment: dict[str, str]):
        self.folder, self.files = folder, folder / "files"
        self.files.mkdir()
        for name, values in PREFERENCES.items():
            file = folder / f"settings/@jupyterlab/{name}.jupyterlab-settings"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(values))
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        places = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime"}
        places |= {"JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces"}
        places |= {"IPYTHONDIR": "ipython", "RECIPES_STATE_DIR": "state", "RECIPES_OUTPUT_DIR": "outputs"}
        options = {
            "ServerApp.port": port,
            "ServerApp.port_retries": 0,
            "ServerApp.root_dir": self.files,
            "ServerApp.log_level": "WARN",
            "IdentityProvider.token": TOKEN,
            "LabApp.expose_app_in_browser": True,
            "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
        }
        with (folder / "server.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
                + [f"--{name}={value}" for name, value in options.items()],
                env=os.environ | environment | {name: str(folder / place) for name, place in places.items()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
            )

    def ready(self, patience: float = 60) -> Server:
        """Wait until it answers; returns itself."""
        end = time.monotonic() + patience
        while time.monotonic() < end and self._process.poll() is None:
            try:
                if self.ask("GET", "status").ok:
                    return self
            except requests.ConnectionError:
                time.sleep(0.05)
        raise RuntimeError(f"JupyterLab did not start: {(self.folder / 'server.log').read_text()[-2000:]}")

    def ask(self, method: str, path: str) -> requests.Response:
        """A request to the server's own API, as its pages make them."""
        return requests.request(method, f"{self.url}/api/{path}", params={"token": TOKEN}, timeout=20)

    def forget(self) -> None:
        """End all kernels, and empty the folders: the next test finds an unused machine."""
        for session in self.ask("GET", "sessions").json():
            self.ask("DELETE", f"sessions/{session['id']}")
        for place in ("state", "outputs"):
            shutil.rmtree(self.folder / place, ignore_errors=True)

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Lab:
    """One JupyterLab in one window, for one test at a time.

    ``name`` is the test's: of its folder on the server and of its screenshots.
    """

    def __init__(self, server: Server, browser: Browser):
        self.server, self.name = server, ""
        self._context = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT}, reduced_motion="reduce")
        self._context.grant_permissions(["clipboard-read", "clipboard-write"], origin=server.url)
        self._context.set_default_timeout(REACTION)
        self.page: Page = self._context.new_page()
        self.complaints: list[str] = []  #: errors on the console, uncaught exceptions, requests to other machines
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.complaints.append(f"uncaught: {error}"))
        self.page.on("request", self._requested)
        # A workspace of its own: JupyterLab opens again what was open in this one, and in no other.
        self.page.goto(f"{server.url}/lab/workspaces/{uuid4().hex}?token={TOKEN}")
        self.page.wait_for_function("() => window.jupyterapp?.restored")

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type == "error" and not any(re.search(known, message.text) for known in TOLERATED):
            self.complaints.append(f"console: {message.text[:500]} ({message.location.get('url', '')[:200]})")

    def _requested(self, request: Request) -> None:
        address = urlsplit(request.url)
        if address.scheme not in ("data", "blob") and address.hostname != "127.0.0.1":
            self.complaints.append(f"request to another machine: {request.url[:200]}")

    def start(self, name: str, notebooks: list[Path]) -> None:
        """Begin a test: a folder of its name with fresh copies of the notebooks, and the file browser in it."""
        self.name = re.sub(r"\W+", "-", name).strip("-")
        for old in SCREENSHOTS.glob(f"{self.name}*.png"):
            old.unlink()
        self.complaints.clear()
        self.theme("JupyterLab Light")
        folder = self.server.files / self.name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for path in notebooks:
            shutil.copy(path, folder)
        self.page.evaluate("path => jupyterapp.commands.execute('filebrowser:open-path', { path })", f"/{self.name}")

    def finish(self) -> None:
        """Close what is open, without saving, as it was in the beginning."""
        self.page.evaluate("() => [...jupyterapp.shell.widgets('main')].forEach(w => w.context && w.dispose())")
        self.page.set_viewport_size({"width": WIDTH, "height": HEIGHT})
        self.server.forget()

    def close(self) -> None:
        self._context.close()

    def open(self, name: str) -> Notebook:
        """Open a notebook by a double click in the file browser; returns when its kernel is ready."""
        self.page.locator(f'.jp-DirListing-item[title^="Name: {name}"]').dblclick()
        return Notebook(self, f"{self.name}/{name}")

    def menu(self, menu: str, command: str) -> None:
        """Choose a command from a menu of the menu bar, with the mouse."""
        self.page.get_by_role("menuitem", name=menu, exact=True).click()
        self.page.locator(f'.lm-Menu-item[data-command="{command}"]').click()

    def palette(self, command: str) -> None:
        """Choose a command from the command palette, with the keyboard alone."""
        self.page.keyboard.press("ControlOrMeta+Shift+C")
        self.page.locator(".lm-CommandPalette-input").wait_for()
        self.page.keyboard.type(command)
        self.page.locator(".lm-CommandPalette-item.lm-mod-active", has_text=command).wait_for()
        self.page.keyboard.press("Enter")

    def reload(self) -> None:
        """Reload the page, as with F5; JupyterLab opens again what was open."""
        self.page.reload()
        self.page.wait_for_function("() => window.jupyterapp?.restored")

    def theme(self, name: str) -> None:
        """Change the theme: "JupyterLab Light" or "JupyterLab Dark"."""
        self.page.evaluate("theme => jupyterapp.commands.execute('apputils:change-theme', { theme })", name)
        self.page.wait_for_selector(f'body[data-jp-theme-name="{name}"]', state="attached")

    def screenshot(self, what: str = "") -> bytes:
        """Keep what the window shows, as the test's picture; returns it (PNG)."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.settle()
        return self.page.screenshot(path=SCREENSHOTS / f"{self.name}{'-' * bool(what)}{what}.png")

    def settle(self) -> None:
        """Until the page is drawn: JupyterLab draws cells only once they come into sight."""
        self.page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def violations(self, selector: str) -> list[str]:
        """What axe-core finds wrong, serious or worse, in the parts of the page that ``selector`` matches."""
        from axe_playwright_python.sync_playwright import Axe

        found = Axe().run(self.page, selector, {"resultTypes": ["violations"]}).response["violations"]
        return [
            f"{one['id']} ({one['impact']}): {one['help']}: {node['html'][:200]}"
            for one in found
            if one["impact"] in ("serious", "critical")
            for node in one["nodes"]
        ]


class Notebook:
    """A notebook that is open in JupyterLab; ``path`` on the server."""

    def __init__(self, lab: Lab, path: str):
        self.lab, self.page, self.path = lab, lab.page, path
        self.file = lab.server.files / path
        self.wait_until_shown()

    def wait_until_shown(self) -> None:
        """Until it is there, whole, and its kernel is ready."""
        # The kernel may be busy: after a reload it goes on with what it was doing.
        self.page.wait_for_function(
            f"""path => {{ {PANEL} return panel?.content?.widgets?.length && panel.context.isReady
                && panel.content.widgets.every(cell => cell.isAttached)
                && ['idle', 'busy'].includes(panel.sessionContext.session?.kernel?.status) }}""",
            arg=self.path,
        )
        self.panel: Locator = self.page.locator("#" + self._ask("panel.id"))

    def _ask(self, expression: str, **also: Any) -> Any:
        """The value of an expression of ``panel`` (JupyterLab's NotebookPanel) and ``also``."""
        names = ", ".join(["path", *also])
        return self.page.evaluate(f"({{{names}}}) => {{ {PANEL} return {expression} }}", {"path": self.path, **also})

    def counts(self) -> dict[str, int]:
        """The numbers in the brackets of the code cells, by the cells' ids; 0: not run."""
        cells = "panel.content.widgets.filter(cell => cell.model.type === 'code')"
        return dict(self._ask(f"{cells}.map(cell => [cell.model.id, cell.model.executionCount ?? 0])"))

    def cell(self, id_: str) -> Locator:
        """The cell of this id, scrolled to."""
        number = self._ask("panel.content.widgets.findIndex(cell => cell.model.id === id)", id=id_)
        assert number >= 0, f"{self.path} has no cell {id_}; it has {list(self.counts())}"
        found = self.panel.locator(f'.jp-Cell[data-windowed-list-index="{number}"]')
        found.scroll_into_view_if_needed()
        return found

    def with_text(self, text: str) -> str:
        """Id of the first code cell whose source has this text in it."""
        cells = "panel.content.widgets.filter(cell => cell.model.type === 'code')"
        found = self._ask(f"{cells}.find(cell => cell.model.sharedModel.source.includes(text))?.model.id", text=text)
        assert found, f"no code cell of {self.path} says {text!r}"
        return found

    def output(self, id_: str) -> Locator:
        """What is below the cell of this id."""
        return self.cell(id_).locator(".jp-OutputArea").first

    def outputs(self, id_: str) -> list[dict]:
        """The outputs of the cell of this id, as a document would hold them."""
        return self._ask("panel.content.widgets.find(cell => cell.model.id === id).model.outputs.toJSON()", id=id_)

    def source(self, id_: str) -> str:
        return self._ask("panel.content.widgets.find(cell => cell.model.id === id).model.sharedModel.source", id=id_)

    def kernel(self) -> str:
        """Id of the kernel."""
        return self._ask("panel.sessionContext.session.kernel.id")

    def go_to(self, id_: str) -> None:
        """Select the cell of this id, by a click beside its text, so that commands are for it."""
        self.cell(id_).locator(".jp-InputPrompt").first.click()

    def begin(self) -> None:
        """Note what has run so far: :meth:`wait` waits for what runs from now on."""
        self._before = self.counts()

    def run_all(self) -> None:
        """Run > Run All Cells. Returns at once."""
        self.begin()
        self.lab.menu("Run", "runmenu:run-all")

    def run_to(self, id_: str) -> None:
        """Run the cell of this id and all above it, and wait for them."""
        self.begin()
        self.go_to(id_)
        self.lab.menu("Run", "notebook:run-all-above")
        self.go_to(id_)
        self.page.keyboard.press("ControlOrMeta+Enter")
        ids = list(self._before)
        self.wait(ids[: ids.index(id_) + 1])

    def run(self, id_: str) -> None:
        """Run the cell of this id, by Ctrl+Enter, and wait for it."""
        self.begin()
        self.go_to(id_)
        self.page.keyboard.press("ControlOrMeta+Enter")
        self.wait([id_])

    def wait(self, cells: list[str] | None = None, patience: int = RUN) -> None:
        """Wait until these cells, all by default, have run and the kernel rests.

        Raises
        ------
        AssertionError
            A cell ended with an error, or some did not run in ``patience`` milliseconds.
        """
        from playwright.sync_api import TimeoutError as TooLate

        arg = {"path": self.path, "cells": cells or list(self._before), "before": self._before}
        ended = f"""({{path, cells, before}}) => {{ {PANEL}
            const code = panel.content.widgets.filter(cell => cells.includes(cell.model.id));
            const wrong = code.find(cell => cell.model.executionCount > before[cell.model.id]
                && cell.model.outputs.toJSON().some(output => output.output_type === 'error'));
            const all = code.every(cell => cell.model.executionCount > before[cell.model.id]);
            return (all || wrong) && panel.sessionContext.session.kernel.status === 'idle' }}"""
        late = ""
        try:
            self.page.wait_for_function(ended, arg=arg, timeout=patience)
        except TooLate:
            waiting = [
                id_ for id_, count in self.counts().items() if id_ in arg["cells"] and count <= self._before[id_]
            ]
            late = f"{self.path}: not run after {patience / 1000:g} s: {waiting}"
        assert not (wrong := self.errors()), f"{self.path}: {wrong}"
        assert not late, late

    def see(self, what: Callable[[], Any], patience: float = REACTION / 1000) -> Any:
        """Wait until ``what()`` is true; returns its value."""
        end = time.monotonic() + patience
        while not (seen := what()):
            assert time.monotonic() < end, f"not seen in {patience:g} s"
            self.page.wait_for_timeout(50)
        return seen

    def field(self, parameter: str) -> Locator:
        """The input of a parameter in the form."""
        return self.panel.locator(".recipes-form").get_by_label(parameter, exact=True)

    def row(self, parameter: str) -> Locator:
        """The form's row of a parameter: input, explanation, and what is wrong."""
        return self.panel.locator(".recipes-field").filter(has=self.page.get_by_label(parameter, exact=True))

    def part(self, selector: str) -> Locator:
        """The first part of the notebook that the selector finds, in sight: what is off the screen is not drawn."""
        found = self.panel.locator(selector).first
        for _ in range(5):  # what is drawn above it on the way pushes it out of sight again
            found.scroll_into_view_if_needed()
            self.lab.settle()
        return found

    def errors(self) -> dict[str, str]:
        """The errors that cells ended with, by the cells' ids."""
        return {
            id_: f"{output['ename']}: {output['evalue']}"
            for id_ in self.counts()
            for output in self.outputs(id_)
            if output["output_type"] == "error"
        }

    def save(self) -> nbformat.NotebookNode:
        """Save with Ctrl+S; returns the document on the server's disk."""
        self.page.keyboard.press("ControlOrMeta+S")
        self.page.wait_for_function(f"path => {{ {PANEL} return !panel.context.model.dirty }}", arg=self.path)
        return nbformat.read(self.file, as_version=4)

    def whole_picture(self, what: str = "") -> bytes:
        """Keep a picture of the whole notebook, as if the window were high enough; returns it (PNG)."""
        scroller = self.panel.locator(".jp-WindowedPanel-outer")
        height = scroller.evaluate("node => node.scrollHeight")
        self.page.set_viewport_size({"width": WIDTH, "height": min(height + 200, 14_000)})
        scroller.evaluate("node => node.scrollTo(0, 0)")
        picture = self.lab.screenshot(what)
        self.page.set_viewport_size({"width": WIDTH, "height": HEIGHT})
        return picture


def colours(picture: bytes) -> int:
    """How many different colours a PNG has; an empty box has one or two, with a frame a few more."""
    from PIL import Image

    return len(Image.open(io.BytesIO(picture)).convert("RGB").getcolors(maxcolors=1 << 24))


def boxes(locator: Locator) -> Iterator[tuple[float, float]]:
    """Width and height (pixels) of everything that the locator finds; 0, 0 for what is not shown."""
    for one in locator.all():
        box = one.bounding_box() or {"width": 0, "height": 0}
        yield box["width"], box["height"]
