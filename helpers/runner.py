"""Run notebooks unattended: `python -m helpers run NOTEBOOK... [-f FILE]... [-p NAME VALUE]...`

papermill injects the parameters and executes the cells. Around it, this module refuses parameters that do
not fit, ends a run at its deadline, tells a dead kernel from a finished one, reads recorded results back,
and lets no secret reach the disk.

Each notebook runs once for each parameter file (for each document in it), in its own folder and with this
Python, and leaves NAME.ipynb, NAME.results.json and NAME.html. NAME is the notebook's name and, where
there is one, `--` and the name of the parameter file.

exit codes; of several runs, the one that stands first here counts:
  2         wrong usage: nothing was started
  130, 143  interrupted by Ctrl-C or SIGTERM: what had run until then is saved
  3         a kernel died
  4         a deadline passed, or a cell raised TimedOut: running again carries on
  1         a cell failed, or the result could not be saved
  5         a cell raised NotConfigured: settings are missing
  0         every notebook ran to its end
"""

import argparse
import asyncio
import difflib
import json
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime
from logging import CRITICAL, getLogger
from pathlib import Path
from uuid import uuid4

import nbformat
import yaml
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_core.utils import ensure_event_loop
from nbclient.exceptions import CellExecutionError, DeadKernelError
from papermill import execute_notebook
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines

from .parameters import RESULT_MIMETYPE, Parameter, declared
from .redaction import known_secrets, redact, redact_notebook, reveals_secret

EXIT_CODES = {
    "interrupted": 130, "kernel died": 3, "deadline": 4, "timed out": 4, "failed": 1, "not configured": 5, "ok": 0
}  # fmt: skip
#: Outcomes by what a cell raised.
RAISED = {"NotConfigured": "not configured", "TimedOut": "timed out", "Throttled": "timed out"}
GRACE = 5.0  # seconds between interrupting a kernel and killing it

_OUTPUT = Path("outputs", "executed")
_PAGE = "{% extends 'lab/index.html.j2' %}" + "".join(  # without the scripts that it would fetch elsewhere
    f"{{% block {block} %}}{{% endblock %}}"
    for block in ("html_head_js", "html_head_js_mathjax", "html_head_js_mermaidjs", "jupyter_widgets")
)
_log = getLogger("papermill")
_log.setLevel(CRITICAL + 1)  # it logs sources of cells, and errors that are reported here anyway


class UsageError(Exception):
    """The runs cannot start as asked for: exit code 2. The message lists all problems, one a line."""


@dataclass(frozen=True)
class RunResult:
    """What became of one run.

    `outcome` is a key of EXIT_CODES; `results` are the recorded ones; `error` is None or has `type`,
    `message`, `cell` (its number, or None) and `title`; `seconds` are of wall clock.
    """

    output: Path
    outcome: str
    exit_code: int
    results: dict
    error: dict | None
    seconds: float


def run(notebook, parameters=None, output=None, deadline=None, html=False, env=None) -> RunResult:
    """Run one notebook and save it, whatever becomes of it.

    `parameters` are checked like those of a YAML file; `output` is the executed notebook (by default
    outputs/executed/NAME.ipynb); `deadline` is in seconds, for the whole run; `env` is added to the
    environment of the kernel only. A failing recipe is a result, not an exception. Raises UsageError before
    anything starts, and KeyboardInterrupt when interrupted, after having saved what had run.
    """
    problems: list[str] = []
    runs = _plan([Path(notebook)], [(None, "", parameters or {})], [], problems, dict(env or {}))
    for job in runs:
        job.output = Path(output or _OUTPUT / job.notebook.name)
        job.deadline, job.html = deadline, html
    _refuse(problems, runs)
    return _run_all(runs, jobs=1)[0]


def read_results(notebook) -> dict:
    """The results recorded in an executed notebook (a path or a node): {name: value}, later ones win."""
    node = notebook if isinstance(notebook, nbformat.NotebookNode) else nbformat.read(notebook, as_version=4)
    outputs = [output for cell in node.cells for output in cell.get("outputs", ())]
    records = [output.get("data", {}).get(RESULT_MIMETYPE) for output in outputs]
    return {record["name"]: record.get("value") for record in records if record and "name" in record}


def main(argv: list[str] | None = None) -> int:
    """Do what the command line after `python -m helpers run` says; returns the exit code."""
    try:
        with _sigterm_as_interrupt():
            args = _arguments(argv)
            problems: list[str] = []
            documents = [document for file in args.files for document in _documents(file, problems)]
            runs = _plan(args.notebook, documents or [(None, "", {})], args.texts, problems)
            _name_outputs(runs, args.folder)
            for job in runs:
                job.deadline, job.html, job.say = args.deadline, args.html, _to_stderr
            _refuse(problems, runs)
            codes = {result.exit_code for result in _run_all(runs, args.jobs)}
            return next(code for code in EXIT_CODES.values() if code in codes)
    except UsageError as error:
        _to_stderr(str(error))
        return 2
    except SystemExit as end:  # argparse has printed its help, or what is wrong
        return int(end.code or 0)
    except KeyboardInterrupt as interrupt:
        return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = _parser()
    args = parser.parse_args(argv)
    # What stands behind -f is taken for its files: `-f parameters/*.yaml notebook.ipynb`.
    args.notebook += [file for file in args.files if file.suffix == ".ipynb"]
    args.files = [file for file in args.files if file.suffix != ".ipynb"]
    if not args.notebook:
        parser.error("name a notebook")
    return args


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m helpers run", epilog=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, many = parser.add_argument, {"action": "append", "default": []}
    add("notebook", nargs="*", type=Path, metavar="NOTEBOOK")
    add(
        "-f",
        dest="files",
        nargs="+",
        action="extend",
        default=[],
        type=Path,
        metavar="FILE",
        help="YAML files with parameters",
    )
    add("-p", dest="texts", **many, nargs=2, metavar=("NAME", "VALUE"), help="a parameter, over the files'")
    add("-o", dest="folder", default=_OUTPUT, type=Path, metavar="DIR", help="default: %(default)s")
    add("--jobs", default=1, type=_positive_int, metavar="N", help="runs at the same time, default: 1")
    add("--deadline", type=_positive, metavar="S", help="seconds for each run as a whole, default: none")
    add("--html", action=argparse.BooleanOptionalAction, default=True, help="write a web page, default: yes")
    return parser


def _positive(text: str, kind=float):
    if not (number := kind(text)) > 0:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return number


def _positive_int(text: str) -> int:
    return _positive(text, int)


def _to_stderr(line: str) -> None:
    sys.stderr.write(f"{line}\n")  # one write: lines of parallel runs stay whole
    sys.stderr.flush()


# --- planning: whatever can be wrong is found before the first kernel starts ---


@dataclass
class _Run:
    """One notebook with one set of parameters, from the plan to the end of its kernel."""

    notebook: Path
    node: nbformat.NotebookNode
    stem: str | None  # of the parameter file
    parameters: dict
    env: dict[str, str]
    secrets: frozenset[str]
    output: Path = Path()
    deadline: float | None = None
    html: bool = False
    say: Callable[[str], None] = lambda line: None
    stop: threading.Event = field(default_factory=threading.Event)  # set: end now
    ended: threading.Event = field(default_factory=threading.Event)  # set: there is nothing left to end
    cut: str | None = None  # the outcome, if the run was ended from outside
    dead: bool = False
    began: float = 0.0  # by the monotonic clock
    stderr: deque[str] = field(default_factory=lambda: deque(maxlen=20))

    def tell(self, text: str, progress: str = "") -> None:
        self.say(redact(f"[{self.output.stem}{progress}] {text}", self.secrets))


def _plan(notebooks, documents, texts, problems: list[str], env=None) -> list[_Run]:
    """A run for each notebook and document (stem, place, values); `texts` come from the command line."""
    env = env or {}
    secrets = known_secrets({**os.environ, **env})
    runs = []
    for path in notebooks:
        try:
            node = nbformat.read(path, as_version=4)
            known = _declared(node)
        except Exception as error:  # noqa: BLE001 - nbformat lets through what its libraries raise
            problems.append(f"{path}: {_first_line(error)}")
            continue
        chosen = _accepted(known, dict(texts), Parameter.convert, f"{path}: -p ", secrets, problems)
        for stem, place, values in documents:
            prefix = f"{path}: {place}: " if place else f"{path}: "
            given = _accepted(known, values, Parameter.check, prefix, secrets, problems)
            runs.append(_Run(path, node, stem, given | chosen, env, secrets))
    return runs


def _declared(node) -> dict[str, Parameter]:
    """The parameters of a notebook by name; raises ValueError if it does not have one `parameters` cell."""
    cells = [cell for cell in node.cells if "parameters" in cell.metadata.get("tags", ())]
    if len(cells) != 1:
        raise ValueError(f"needs exactly one cell tagged 'parameters', has {len(cells)}")
    return declared(cells[0].source)


def _accepted(known, values, check, prefix, secrets, problems) -> dict:
    """Those of `values` that the notebook knows and that fit; of the others, `problems` tells."""
    accepted = {}
    for name, value in values.items():
        try:
            if name not in known:
                close = difflib.get_close_matches(str(name), known, 1)
                hint = f"did you mean {close[0]}? " if close else ""
                raise ValueError(f"unknown; {hint}known are {', '.join(known) or 'none'}")
            if reveals_secret(value, secrets):
                raise ValueError("looks like a secret, and parameters are stored; use .env_tutorial")
            accepted[name] = check(known[name], value)
        except ValueError as error:
            problems.append(f"{prefix}{name}: {error}")
    return accepted


def _documents(file: Path, problems: list[str]) -> list[tuple[str, str, dict]]:
    """The documents of a YAML file: a stem for the output's name, where it stands, the values."""
    documents = []
    try:
        loader = yaml.SafeLoader(file.read_text(encoding="utf-8"))
        while loader.check_node():
            node = loader.get_node()
            values = loader.construct_document(node)
            if not isinstance(values, dict):
                raise ValueError("must consist of lines `name: value`")
            keys = [key.value for key, _ in node.value]
            if twice := sorted({key for key in keys if keys.count(key) > 1}):
                raise ValueError(f"given more than once: {', '.join(twice)}")
            place = f"{file}:{node.start_mark.line + 1}"
            documents.append((f"{file.stem}-{len(documents) + 1}", place, values))
    except (OSError, ValueError, yaml.YAMLError) as error:
        problems.append(f"{file}: {' '.join(str(error).split())}")
    if len(documents) > 1:
        return documents
    return [(file.stem, f"{file}", documents[0][2] if documents else {})]


def _name_outputs(runs: list[_Run], folder: Path) -> None:
    taken: set[str] = set()
    for job in runs:
        base = "--".join(filter(None, (job.notebook.stem, job.stem)))
        names = [base, *(f"{base}-{n}" for n in range(2, len(runs) + 1))]
        name = next(name for name in names if name.casefold() not in taken)
        taken.add(name.casefold())
        job.output = folder / f"{name}.ipynb"


def _refuse(problems: list[str], runs: list[_Run]) -> None:
    """Raises UsageError with all problems, if there are any; otherwise the output folders exist."""
    sources = {job.notebook.resolve() for job in runs}
    over = [job.output for job in runs if job.output.resolve() in sources]
    problems += [f"{output}: is a source; choose another -o" for output in over]
    try:
        for folder in {job.output.parent for job in runs if not problems}:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problems.append(f"{error.filename}: {error.strerror}")
    if problems:
        raise UsageError(redact("\n".join(dict.fromkeys(problems)), runs[0].secrets if runs else None))


# --- executing ---


def _run_all(runs: list[_Run], jobs: int) -> list[RunResult]:
    """All results, in order. When interrupted: ends the runs, waits until they are saved, then raises."""
    with ThreadPoolExecutor(jobs) as pool:
        futures = []
        try:
            futures += [pool.submit(_execute, job) for job in runs]
            wait(futures)
        except KeyboardInterrupt:
            for job in runs:
                job.stop.set()
            wait(futures)
            raise
    return [future.result() for future in futures]


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt(SIGTERM) in the main thread, much as Ctrl-C does."""

    def interrupt(number, frame):
        raise KeyboardInterrupt(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _execute(job: _Run) -> RunResult:
    """Execute a notebook in this thread, then save what there is of it."""
    started, job.began, failure = datetime.now(UTC), time.monotonic(), None
    if job.stop.is_set():
        return RunResult(job.output, "interrupted", EXIT_CODES["interrupted"], {}, None, 0.0)
    try:
        with _event_loop():
            # No output path: papermill would write what is not redacted yet.
            options = {"kernel_name": "python3", "language": "python", "progress_bar": False}
            execute_notebook(job.node, None, job.parameters, engine_name=_Engine.__name__, job=job, **options)
    except Exception as error:  # noqa: BLE001 - whatever it was, the notebook is saved and the user told
        failure = error
    outcome, error = _judge(job, failure)
    return _save(job, started, outcome, error)


@contextmanager
def _event_loop() -> Iterator[None]:
    """The loop that nbclient uses in this thread; closed with all that a dead kernel leaves behind in it."""
    loop = ensure_event_loop()
    try:
        yield
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.close()


class _Engine(NBClientEngine):
    """papermill's engine, with a kernel of this Python, with its own environment, and watched."""

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, job, start_timeout=60, **_):
        job.node = nb_man.nb
        # No folders to search: "python3" as installed somewhere else would be another Python.
        specs = KernelSpecManager(kernel_dirs=[])
        manager = AsyncKernelManager(kernel_name=kernel_name, kernel_spec_manager=specs)
        options = {"startup_timeout": start_timeout, "iopub_timeout": 60, "log": _log}
        client = _Client(nb_man, job, km=manager, **options)
        place = {"cwd": str(job.notebook.resolve().parent), "env": {**os.environ, **job.env}}
        with _kernel_stderr(job) as stderr, _watched(job, manager):
            client.execute(cleanup_kc=True, stderr=stderr, **place)


papermill_engines.register(_Engine.__name__, _Engine)


class _Client(PapermillNotebookClient):
    """papermill's client; but no cell escapes the deadline, the death of its kernel, or an `exit()`."""

    def __init__(self, nb_man, job: _Run, **options):
        super().__init__(nb_man, on_cell_executed=self._refuse_exit, **options)
        self.job = job

    def papermill_execute_cells(self):
        super().papermill_execute_cells()
        if self.job.dead:
            raise DeadKernelError  # or papermill would ask it for its language, and wait 5 s

    def execute_cell(self, cell, cell_index, **options):
        if cell.cell_type != "code" or not cell.source.strip():
            return cell
        began, state = time.monotonic(), "failed"
        try:
            if self.job.cut:  # the interrupt came between two cells, where it has no effect
                raise _failure(cell, "KeyboardInterrupt", "")
            super().execute_cell(cell, cell_index, **options)
            state = "ok"
        except DeadKernelError:
            self.job.dead, state = True, "kernel died"
            raise _failure(cell, "KernelDied", self._cause_of_death()) from None
        finally:
            state = state if state == "ok" else self.job.cut or state
            number, total, title = _position(self.nb, cell)
            self.job.tell(f"{time.monotonic() - began:.1f} s  {state:<3} {title}", f" {number}/{total}")
        return cell

    @staticmethod
    def _refuse_exit(cell, cell_index, execute_reply):
        # The kernel calls it a success and leaves: the cells after this one would not run.
        if any(note.get("source") == "ask_exit" for note in execute_reply["content"].get("payload", ())):
            raise _failure(cell, "SystemExit", "exit() ends the kernel; raise an exception instead")

    def _cause_of_death(self) -> str:
        code = self.km.provisioner.process.poll() if self.km.has_kernel else None
        cause = signal.Signals(-code).name if code and code < 0 else f"exit code {code}"
        return f"{cause} (out of memory?)" if cause == "SIGKILL" else "\n".join([cause, *self.job.stderr])


def _failure(cell, ename: str, evalue: str) -> CellExecutionError:
    """What papermill takes for a failed cell, after leaving the same in the cell's output."""
    error = nbformat.v4.new_output("error", ename=ename, evalue=evalue, traceback=[f"{ename}: {evalue}"])
    cell.outputs.append(error)
    return CellExecutionError("", ename, evalue)


@contextmanager
def _kernel_stderr(job: _Run) -> Iterator[int]:
    """A file descriptor for what the kernel says outside of cells; the last lines tell why it died."""
    reader, writer = os.pipe()

    def keep():
        with os.fdopen(reader, errors="replace") as lines:
            job.stderr.extend(line.rstrip() for line in lines if "[IPKernelApp] WARNING" not in line)

    threading.Thread(target=keep, daemon=True).start()  # ends with the last process that has the pipe open
    try:
        yield writer
    finally:
        os.close(writer)


@contextmanager
def _watched(job: _Run, manager: AsyncKernelManager) -> Iterator[None]:
    """At the deadline, or when told to stop, the kernel is interrupted and, after GRACE, killed."""

    def watch():
        until = job.began + (float("inf") if job.deadline is None else job.deadline)
        while not (job.stop.is_set() or time.monotonic() >= until):
            if job.ended.wait(0.1):
                return
        job.cut = "interrupted" if job.stop.is_set() else "deadline"
        if manager.has_kernel:
            asyncio.run(manager.provisioner.send_signal(signal.SIGINT))
        pause = GRACE
        while not job.ended.wait(pause):  # again and again: it may not have started yet
            pause = 0.5
            if manager.has_kernel:
                asyncio.run(manager.provisioner.kill())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        job.ended.set()
        watcher.join()


# --- judging and saving ---


def _position(node, cell) -> tuple[int, int, str]:
    """The number of a code cell (as in its `In [n]`), the number of all, and what the cell is about."""
    titles, heading, number = [], "", 0
    for other in node.cells:
        lines = other.source.strip().splitlines()
        own = next((line for line in lines if line.startswith("#")), "")
        if other.cell_type == "markdown":
            heading = own or heading
        elif other.cell_type == "code" and lines:
            titles.append((own or heading or lines[0]).lstrip("# ")[:80])
            number = len(titles) if other is cell else number
    return number, len(titles), titles[number - 1]


def _judge(job: _Run, failure: Exception | None) -> tuple[str, dict | None]:
    """The outcome of an execution, and its error; `failure` is what papermill raised."""
    errors = [(cell, output) for cell in job.node.cells for output in cell.get("outputs", ())]
    errors = [(cell, output) for cell, output in errors if output.output_type == "error"]
    where = ()
    if errors:
        # Not a cell tagged raises-exception, if another one ended the run.
        cell, output = max(errors, key=lambda found: bool(found[0].metadata.papermill.exception))
        number, _, title = _position(job.node, cell)
        where, kind, message = (number, title), output.ename, output.evalue
    elif failure:
        kind, message = type(failure).__name__, "\n".join([str(failure), *job.stderr])
    if job.cut == "deadline":
        return "deadline", _error("Deadline", f"{job.deadline:g} s are over", *where)
    if job.cut:
        return "interrupted", _error("Interrupted", "by a signal from outside", *where)
    if not (errors or failure):
        return "ok", None
    # nbclient and the system raise these two when a kernel does not start.
    dead = job.dead or (not errors and isinstance(failure, RuntimeError | OSError))
    outcome = "kernel died" if dead else RAISED.get(kind, "failed")
    return outcome, _error(kind, message, *where)


def _error(kind: str, message: str, cell: int | None = None, title: str | None = None) -> dict:
    return {"type": kind, "message": message, "cell": cell, "title": title}


def _save(job: _Run, started: datetime, outcome: str, error: dict | None) -> RunResult:
    """Write notebook, results and page, redacted; tell how the run ended."""
    node = redact_notebook(_honest(job, outcome), job.secrets)
    seconds = round(time.monotonic() - job.began, 3)
    times = {"started": _iso(started), "finished": _iso(datetime.now(UTC)), "seconds": seconds}
    record = {"notebook": job.notebook.name, "parameters": job.parameters, **times, "outcome": outcome}
    record = {**redact({**record, "error": error}, job.secrets), "results": read_results(node)}
    error, page = record["error"], job.output.with_suffix(".html")
    try:
        page.unlink(missing_ok=True)  # it would show an earlier run
        _write(job.output, nbformat.writes(node))
        _write(job.output.with_suffix(".results.json"), json.dumps(record, indent=1) + "\n")
    except OSError as problem:
        outcome, error = "failed", _error(type(problem).__name__, str(problem))
    if job.html:
        try:
            _write(page, _html(node, job.output.stem))
        except Exception as problem:  # noqa: BLE001 - a page is a convenience, and the notebook is safe
            job.tell(f"no web page: {type(problem).__name__}: {problem}")
    if error:
        place = f" in cell {error['cell']} ({error['title']})" if error["cell"] else ""
        kind = "" if outcome in ("kernel died", job.cut) else f"{error['type']}: "
        job.tell(f"{outcome}{place}: {kind}{error['message'][:2000]}")
    job.tell(f"{outcome} after {seconds:.1f} s, see {job.output}")
    return RunResult(job.output, outcome, EXIT_CODES[outcome], record["results"], error, seconds)


def _honest(job: _Run, outcome: str) -> nbformat.NotebookNode:
    """The notebook, with metadata that claim no more than was executed and name no machine's folders."""
    for cell in job.node.cells:
        told = cell.metadata.get("papermill", {})
        if told.get("status") == "completed" and not told.get("start_time"):
            told["status"] = "pending"  # papermill "completes" what it never came to
    told = job.node.metadata.setdefault("papermill", nbformat.NotebookNode())
    told.update(input_path=job.notebook.name, output_path=job.output.name)
    told.update(exception=outcome != "ok" or None)
    return job.node


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds")


def _write(path: Path, text: str) -> None:
    """Write a file as a whole or not at all."""
    unfinished = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _html(node: nbformat.NotebookNode, title: str) -> str:
    from nbconvert import HTMLExporter  # here: importing it takes 0.2 s

    node = deepcopy(node)
    for cell in node.cells:  # recorded results have no picture, and nbconvert would warn about each
        if "outputs" in cell:
            cell.outputs = [o for o in cell.outputs if set(o.get("data", ())) != {RESULT_MIMETYPE}]
    return HTMLExporter(raw_template=_PAGE).from_notebook_node(node, {"metadata": {"name": title}})[0]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
