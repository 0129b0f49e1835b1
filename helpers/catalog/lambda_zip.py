"""The loader as a zip file for AWS Lambda: the part of this package that it needs, and its dependencies for Linux.

    python -m helpers.catalog.lambda_zip catalog-loader.zip
    python -m helpers.catalog.lambda_zip catalog-loader.zip --architecture arm64
    python -m helpers.catalog.lambda_zip catalog-loader.zip --no-dependencies      (they come from a layer)

Runtime python3.13, handler ``helpers.catalog.loading.handler``. Set CATALOG_DSN for the function, give it the right to
read the bucket and the queue, and `ReportBatchItemFailures` to the queue's event source mapping. The same files make
the same zip, byte for byte.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from ..errors import NotConfigured, RecipeError, TimedOut
from ..settings import PROJECT

HANDLER = "helpers.catalog.loading.handler"
#: What the handler imports, sooner or later; the files of ours that this takes are looked up.
MODULES = ("helpers.catalog.loading", "helpers.catalog.pgstac", "helpers.catalog.checking", "helpers.objectstore")
#: What those import; boto3 is in Lambda's runtime.
DEPENDENCIES = (
    "jsonschema-rs", "obstore", "orjson", "psycopg[binary]", "pydantic-settings", "pypgstac[psycopg]", "requests",
)  # fmt: skip
#: Those with machine code: as wheels, or this machine would build them for itself. (Others have no wheel.)
COMPILED = ("hydraters", "jsonschema-rs", "obstore", "orjson", "psycopg-binary", "pydantic-core", "wrapt")
PLATFORMS = {"x86_64": "x86_64-manylinux_2_28", "arm64": "aarch64-manylinux_2_28"}
PYTHON = "3.13"
#: Bytes that Lambda unpacks at most.
LIMIT = 250 << 20
#: The first moment that a zip file can hold.
EPOCH = (1980, 1, 1, 0, 0, 0)


def build(target: Path, *, dependencies: bool = True, architecture: str = "x86_64") -> Path:
    """Write the zip file and return its path.

    Parameters
    ----------
    dependencies:
        Fetch the dependencies, in the versions of constraints.txt, and put them in; needs a network, or uv's cache.
    architecture:
        Of the function: "x86_64" or "arm64".

    Raises
    ------
    NotConfigured
        uv, which fetches the dependencies, is not there.
    TimedOut
        They cannot be fetched.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if dependencies:
            _fetch(root, PLATFORMS[architecture])
        _copy(root)
        files = sorted(path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        if (size := sum(path.stat().st_size for path in files)) > LIMIT:
            raise NotConfigured(f"{size:,} bytes, and Lambda unpacks {LIMIT:,}: make an image instead.")
        target.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in files:
                entry = zipfile.ZipInfo(path.relative_to(root).as_posix(), EPOCH)
                entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
                archive.writestr(entry, path.read_bytes())
    return target


def _copy(root: Path) -> None:
    """Our files, found by importing what the handler imports in an interpreter that has nothing else."""
    look = f"""
import importlib, json, sys
for name in {MODULES!r}: importlib.import_module(name)
print(json.dumps([m.__file__ for n, m in sys.modules.items() if n.partition(".")[0] == "helpers" and m.__file__]))
"""
    found = subprocess.run([sys.executable, "-c", look], cwd=PROJECT, capture_output=True, text=True, check=True)
    for file in map(Path, json.loads(found.stdout)):
        place = root / file.relative_to(PROJECT)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)
    from .. import schemas

    # In place of the packages that the schemas are taken from here: they are too large for Lambda.
    schemas.save(root / schemas.PACKED.relative_to(PROJECT))


def _fetch(root: Path, platform: str) -> None:
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if not uv:
        raise NotConfigured("uv is not there, and it fetches the dependencies: `pip install uv`, or --no-dependencies.")
    # Versions only: the hashes of constraints.txt are for installing all of it.
    lines = (PROJECT / "constraints.txt").read_text().splitlines()
    versions = root / "constraints.txt"
    versions.write_text("\n".join(line.rstrip(" \\") for line in lines if line[:1].strip() not in ("", "#")) + "\n")
    command = [uv, "pip", "install", "--quiet", "--target", str(root), "--python-platform", platform]
    command += ["--python-version", PYTHON, "--constraint", str(versions), *DEPENDENCIES]
    command += [f"--only-binary={name}" for name in COMPILED]
    try:
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        said = str(error.stderr or "no answer in ten minutes").strip().splitlines()[-3:]
        raise TimedOut(
            f"The dependencies could not be fetched: {' '.join(said)} Is the network there? Run this again,"
            " or with --no-dependencies when they come from a layer."
        ) from None
    versions.unlink()
    shutil.rmtree(root / "bin", ignore_errors=True)


def main() -> None:
    """What `python -m helpers.catalog.lambda_zip` does."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", type=Path, help="the zip file to write")
    parser.add_argument("--architecture", choices=PLATFORMS, default="x86_64", help="(%(default)s)")
    parser.add_argument("--no-dependencies", action="store_true", help="our files only")
    options = parser.parse_args()
    try:
        build(options.target, dependencies=not options.no_dependencies, architecture=options.architecture)
    except RecipeError as error:
        sys.exit(str(error))
    print(f"{options.target}: {options.target.stat().st_size:,} bytes; runtime python{PYTHON}, handler {HANDLER}")
    if options.no_dependencies:
        platform = PLATFORMS[options.architecture]
        print(f"The layer must bring, in the versions of constraints.txt, for {platform}: {', '.join(DEPENDENCIES)}")


if __name__ == "__main__":
    main()
