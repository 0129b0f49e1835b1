"""One Jupyter server and one Chromium for the tests of this folder; a fresh document and a fresh sandbox for each."""

import runpy

import pytest

from ..conftest import notebook_files
from .lab import CHROMIUM, ROOT, Lab, Server

FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    item.stash[FAILED] = item.stash.get(FAILED, False) or report.failed
    return report


@pytest.fixture(scope="session")
def chromium(unsealed) -> str:
    """The browser's path. Without one, the tests are skipped; where one must be there (in CI), they fail."""
    wanted = {name: unsealed[name] for name in ("RECIPES_CHROMIUM", "PLAYWRIGHT_BROWSERS_PATH") if name in unsealed}
    needed = unsealed.get("RECIPES_BROWSER") == "required" or unsealed.get("CI", "").lower() not in ("", "0", "false")
    bootstrap = runpy.run_path(str(ROOT / "bootstrap.py"), run_name="bootstrap")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in wanted.items():
            patch.setenv(name, value)
        found = bootstrap["find_browser"]()
    try:
        import axe_playwright_python  # noqa: F401
        import playwright  # noqa: F401
    except ModuleNotFoundError as error:
        found, reason = "", f"{error.name} is not installed: pip install --group browser"
    else:
        reason = f"no Chromium or Chrome that runs: {' '.join(bootstrap['browser_command']())}, or set RECIPES_CHROMIUM"
    if not found:
        (pytest.fail if needed else pytest.skip)(f"browser tests: {reason}")
    return found


@pytest.fixture(scope="session")
def server(chromium, running_sandbox, prefect_server, tmp_path_factory):
    """A Jupyter server, whose kernels use the shared sandbox and the shared Prefect server."""
    environment = {
        "RECIPES_BACKEND": "sandbox",
        "RECIPES_SANDBOX_URL": running_sandbox.url("control"),
        "PREFECT_API_URL": prefect_server.url,
    }
    server = Server(tmp_path_factory.mktemp("lab"), environment)
    yield server
    server.stop()


@pytest.fixture(scope="package")
def browser(server, chromium, unsealed):
    """Chromium. Ended before tests of other folders begin: meanwhile this thread's asyncio belongs to Playwright."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        headless = unsealed.get("RECIPES_BROWSER") != "headed"
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM, headless=headless)
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def windows():
    """The JupyterLab that is open, if one is: loading its page takes longer than most tests."""
    opened: list[Lab] = []
    yield opened
    for lab in opened:
        lab.close()


@pytest.fixture
def lab(server, browser, windows, sandbox, request):
    """A JupyterLab with nothing open, beside a sandbox in its initial state. What the page complains of, fails."""
    if not windows:
        windows.append(Lab(server.ready(), browser))
    (lab,) = windows
    lab.start(request.node.name.removeprefix("test_"), notebook_files())
    yield lab
    complaints = list(lab.complaints)
    if request.node.stash.get(FAILED, False):
        lab.screenshot("failed")
        windows.remove(lab)  # whatever happened to it, the next test does not inherit it
        lab.close()
        server.forget()
    else:
        lab.finish()
    assert not complaints, "\n".join(complaints)
