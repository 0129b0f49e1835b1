"""What every test stands on: a sealed process, one sandbox, and notebooks run cell by cell or in a real kernel."""

import ast
import atexit
import os
import sys
from datetime import timedelta
from itertools import count
from pathlib import Path

import nbformat
import pytest

PROJECT = Path(__file__).resolve().parent.parent
NOTEBOOKS = PROJECT / "notebooks"

#: No request may leave this machine: any client that obeys the environment runs into a closed port.
SEAL = {
    "HTTP_PROXY": "http://127.0.0.1:9",
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "http_proxy": "http://127.0.0.1:9",
    "https_proxy": "http://127.0.0.1:9",
    "NO_PROXY": "127.0.0.1,localhost",
    "no_proxy": "127.0.0.1,localhost",
}
#: Variables of the machine that would change what the tests see.
FOREIGN = (
    "AWS_",
    "EARTHDATA_",
    "HYP3_",
    "RECIPES_",
    "DESP_",
    "DEDL_",
    "HOOK_",
    "RSPY_",
    "S3_",
    "PREFECT_",
    "JUPYTERHUB_",
    "CATALOG_",
    "PG",  # libpq's
)
FOREIGN += ("NETRC", "JPY_")


#: IPython puts a module of its own in this place, which no process can be spawned from.
MAIN = sys.modules["__main__"]
UNSEALED = pytest.StashKey[dict]()
#: Numbers of the tests' databases.
DATABASES = count()


def pytest_sessionstart(session: pytest.Session) -> None:
    if session.config.getoption("numprocesses", None) and not hasattr(session.config, "workerinput"):
        return  # runs no test itself, and its workers need to know the environment as it was
    session.config.stash[UNSEALED] = dict(os.environ)
    for name in [name for name in os.environ if name.startswith(FOREIGN)]:
        del os.environ[name]
    os.environ.update(SEAL, AWS_EC2_METADATA_DISABLED="true", NETRC=os.devnull)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # or each of hundreds of kernels compiles the helpers anew
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        os.environ[name] = os.devnull


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The fresh clone first: one process runs its tests without giving any away, and nobody waits for it at the end."""
    items.sort(key=lambda item: "tests/setup/" not in item.nodeid)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One more than there are cores: kernels and services are waited for as much as they work."""
    return len(os.sched_getaffinity(0)) + 1 if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1) + 1


@pytest.fixture(scope="session")
def unsealed(pytestconfig) -> dict[str, str]:
    """The environment as it was: for what must reach the package index."""
    return pytestconfig.stash[UNSEALED]


@pytest.fixture(scope="session")
def running_sandbox():
    from helpers.sandbox import Deployment, Sandbox

    # Faster than a workshop wants to watch, slow enough that every state is seen.
    with Sandbox(deployment=Deployment(pending=0.1, running=0.2, hook_queued=0.1, hook_processing=0.2)) as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(running_sandbox):
    """The sandbox in its initial state. Emptied before the test, so that a failure can be looked at afterwards."""
    running_sandbox.clock._added = timedelta()  # a test before may have moved it
    running_sandbox.reset()
    return running_sandbox


@pytest.fixture
def environment(sandbox, tmp_path) -> dict[str, str]:
    """Environment of a process that uses the sandbox, with state and outputs of its own."""
    return {
        "RECIPES_BACKEND": "sandbox",  # whatever the developer's own .env_tutorial says
        "RECIPES_SANDBOX_URL": sandbox.url("control"),
        "RECIPES_STATE_DIR": str(tmp_path / "state"),
        "RECIPES_OUTPUT_DIR": str(tmp_path / "outputs"),
    }


@pytest.fixture
def settings(environment, monkeypatch):
    """The settings of such a process."""
    from helpers import settings as room

    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return room.load()


@pytest.fixture
def s3(settings):
    from helpers import objectstore

    return objectstore.client("s3", settings)


@pytest.fixture
def hyp3(settings):
    from helpers import hyp3 as recipe

    return recipe.connect(settings)


@pytest.fixture(scope="session")
def catalog_cluster():
    """A private PostgreSQL with pgstac; one for all tests of a worker, started by the first that asks."""
    from helpers.sandbox import postgres

    if not postgres.usable():
        pytest.skip(f"no PostgreSQL with PostGIS here: {postgres.how_to_install()}")
    with postgres.Cluster() as cluster:
        yield cluster


@pytest.fixture
def catalog_database(catalog_cluster):
    """How to connect to an empty catalogue of this test's own (a DSN)."""
    name = f"test_{next(DATABASES)}"
    yield catalog_cluster.create(name)
    catalog_cluster.drop(name)


class Session:
    """A notebook run cell by cell in this process: quick enough to try every way of interrupting it."""

    def __init__(self, path: Path, parameters: dict | None = None):
        from IPython.core.interactiveshell import InteractiveShell
        from traitlets.config import Config

        InteractiveShell.clear_instance()
        self.shell = InteractiveShell.instance(config=Config(HistoryManager={"enabled": False}))
        cells = nbformat.read(path, as_version=4).cells
        self.cells = [cell for cell in cells if cell.cell_type == "code"]
        self.text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        self.parameters = parameters or {}

    def run(self, cells: int | None = None, *, until: str = "") -> "Session":
        """Run the first ``cells`` code cells, or all to the one with ``until`` in it. Raises what a cell raises."""
        if until:
            cells = 1 + next(n for n, cell in enumerate(self.cells) if until in cell.source)
        for cell in self.cells[:cells]:
            self.execute(cell.source)
            if "parameters" in cell.metadata.get("tags", ()):
                self.execute("\n".join(f"{k} = {v!r}" for k, v in self.parameters.items()))
        return self

    def execute(self, source: str) -> None:
        from IPython.utils.capture import capture_output

        with capture_output():
            self.shell.run_cell(source, store_history=True).raise_error()

    def close(self) -> None:
        """Free what the notebook holds; left to the end of the process, a hundred sessions take minutes to go."""
        sys.modules["__main__"] = MAIN
        atexit.unregister(self.shell.atexit_operations)
        self.shell.user_ns.clear()

    def __getitem__(self, name: str):
        return self.shell.user_ns[name]


@pytest.fixture
def open_notebook(environment, monkeypatch):
    """Open a notebook in a fresh session: ``open_notebook("1_hyp3_user_bucket.ipynb", run_id="x")``."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    opened = []

    def open_it(name: str, **parameters) -> Session:
        opened.append(Session(NOTEBOOKS / name, parameters))
        return opened[-1]

    yield open_it
    for session in opened:
        session.close()


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory):
    """One Prefect server for all tests of a process: started by the first that asks, and no test waits for it."""
    from helpers.conversion import prefect_server
    from helpers.settings import Settings

    server = prefect_server.ensure(Settings(_env_file=None, state_dir=tmp_path_factory.mktemp("prefect")))
    yield server
    server.stop()


@pytest.fixture
def prefect(prefect_server) -> dict[str, str]:
    """Environment of a process that uses it."""
    return {"PREFECT_API_URL": prefect_server.ready().url}


@pytest.fixture
def run_notebook(environment, tmp_path):
    """Run a notebook in a real kernel through the runner: ``run_notebook(name, extra environment, **parameters)``."""
    from helpers import runner

    def run_it(name: str, env: dict | None = None, **parameters):
        count = len(list(tmp_path.glob("*.ipynb")))
        output = tmp_path / f"{Path(name).stem}-{count}.ipynb"
        return runner.run(NOTEBOOKS / name, parameters, output=output, deadline=300, env=environment | (env or {}))

    return run_it


def notebook_files() -> list[Path]:
    return sorted(NOTEBOOKS.glob("*.ipynb"))


def declared_parameters(source: str) -> dict:
    """Names and literal values of a parameters cell."""
    return {node.target.id: ast.literal_eval(node.value) for node in ast.parse(source).body}
