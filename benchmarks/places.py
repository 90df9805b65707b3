"""Where servers run: virtual environments that are made once, Node's modules, and the compiled load generator."""

from __future__ import annotations

import configparser
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from .entries import Entry

ROOT = Path(__file__).parent.parent
HERE = ROOT / "benchmarks"
BUILD = HERE / ".build"
VENVS = HERE / ".venvs"
NODE_MODULES = VENVS / "node" / "node_modules"


class MissingError(Exception):
    """An entry cannot take part; says why."""


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """The output of a program.

    Raises:
        MissingError: it failed, or there is none.
    """
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    except OSError as exc:
        raise MissingError(str(exc)) from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip() and "WARNING" not in line]
        raise MissingError(f"{Path(command[0]).name}: {lines[-1] if lines else done.returncode}")
    return done.stdout


def find_python(version: str) -> Path:
    """A Python of that *version* that runs: on the path, or of pyenv."""
    found = shutil.which(f"python{version}")
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for python in (*([Path(found)] if found else []), *pyenv.glob(f"versions/{version}.*/bin/python")):
        if subprocess.run([python, "-c", "import venv"], capture_output=True, check=False).returncode == 0:
            return python
    raise MissingError(f"no Python {version} on this machine")


def library_needs() -> list[str]:
    """What openapi_ws itself asks for; the library is taken from the checkout."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    return setup["options"]["install_requires"].split()


class Place:
    """Where the servers of all entries run.

    With *own* environments only what cannot be had otherwise is asked of the network, and once; without, the Python
    that runs the benchmarks is used as it is.
    """

    def __init__(self, *, own: bool, say: Callable[[str], None]) -> None:
        self.own = own
        self.say = say
        self.load = BUILD / "wsload"
        """The load generator."""
        self.left_out: dict[str, str] = {}
        """Entries that cannot take part, and why."""

    def prepare(self, entries: Iterable[Entry]) -> list[Entry]:
        """Compile the load generator and install what the *entries* need; those of them that can take part.

        Raises:
            MissingError: there is no compiler.
        """
        BUILD.mkdir(exist_ok=True)
        run("cc", "-O2", "-Wall", "-Wextra", "-o", self.load, HERE / "wsload.c")
        ready = []
        for entry in entries:
            try:
                self.install(entry)
            except MissingError as exc:
                self.left_out[entry.title] = str(exc)
                self.say(f"left out: {entry.title}: {exc}")
            else:
                ready.append(entry)
        return ready

    def install(self, entry: Entry) -> None:
        """Install what *entry* needs."""
        if entry.is_node:
            run("node", "--version")
            if not NODE_MODULES.exists():
                NODE_MODULES.parent.mkdir(parents=True, exist_ok=True)
                run("npm", "install", "--no-audit", "--no-fund", "--prefix", NODE_MODULES.parent, *entry.requires)
        elif self.own:
            folder = self.environment(entry)
            self.pip(folder, *entry.requires)
            self.pip(folder, "--no-deps", *entry.bare)
        elif not entry.is_at_hand:
            raise MissingError("the short form installs nothing")

    def environment(self, entry: Entry) -> Path:
        """The virtual environment of *entry*, made and filled with this library's own needs if it is new."""
        folder = self.folder(entry)
        if not (folder / "bin" / "python").exists():
            self.say(f"making {folder.relative_to(ROOT)}")
            run(find_python(entry.python) if entry.python else sys.executable, "-m", "venv", folder)
        self.pip(folder, *library_needs())
        return folder

    def folder(self, entry: Entry) -> Path:
        """Where the virtual environment of *entry* is."""
        version = entry.python or f"{sys.version_info.major}.{sys.version_info.minor}"
        return VENVS / (f"{version}-{entry.name}" if entry.is_apart else version)

    def pip(self, folder: Path, *words: str) -> None:
        """Install, unless it was before."""
        done = folder / "installed.txt"
        line = " ".join(words)
        if not [word for word in words if not word.startswith("-")] or (
            done.exists() and line in done.read_text().splitlines()
        ):
            return
        self.say(f"installing {line}")
        run(folder / "bin" / "python", "-m", "pip", "install", "-q", *words)
        with done.open("a") as file:
            file.write(line + "\n")

    def plotter(self, requires: Iterable[str]) -> Path:
        """A Python that can plot.

        Raises:
            MissingError: what it needs cannot be installed.
        """
        folder = VENVS / "plots"
        if not (folder / "bin" / "python").exists():
            run(sys.executable, "-m", "venv", folder)
        self.pip(folder, *requires)
        return folder / "bin" / "python"

    def command(self, entry: Entry) -> tuple[list[str], dict[str, str]]:
        """What starts the server of *entry*, and its variables; the number of its socket comes before the last word."""
        if entry.is_node:
            return ["node", str(HERE / "peers" / entry.module), ""], {"NODE_PATH": str(NODE_MODULES)}
        python = self.folder(entry) / "bin" / "python" if self.own else sys.executable
        loop = "uvloop" if entry.uvloop else "asyncio"
        return [str(python), "-m", f"benchmarks.peers.{entry.module}", loop], {}

    def versions(self) -> dict[str, str]:
        """Of all that can take part, by environment."""
        found = {}
        for folder in sorted(VENVS.glob("3.*")):
            python, owner = folder / "bin" / "python", folder.name.partition("-")[2]
            version = run(python, "-c", "import platform; print(platform.python_version())").strip()
            packages = json.loads(run(python, "-m", "pip", "list", "--format", "json"))
            named = [f"{package['name']} {package['version']}" for package in packages if is_named(package["name"])]
            found[f"Python {version}{f' of {owner}' if owner else ''}"] = ", ".join(named)
        for package in NODE_MODULES.glob("ws/package.json"):
            found[f"Node.js {run('node', '--version').strip()}"] = f"ws {json.loads(package.read_text())['version']}"
        return found


def is_named(package: str) -> bool:
    """The results say its version."""
    return package.lower().replace("_", "-") in {
        "aiohttp", "aio-openapi", "fastapi", "fastapi-websocket-rpc", "litestar", "orjson", "picows", "pydantic",
        "pydantic-core", "python-engineio", "python-socketio", "starlette", "uvicorn", "uvloop", "websockets",
    }  # fmt: skip
