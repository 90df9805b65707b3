"""The house: what its rooms may hold, read from the source."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import openapi_ws

HOUSE = Path(openapi_ws.__file__).parent
MODULES = sorted(HOUSE.rglob("*.py"))


def calls(path: Path) -> list[str]:
    """Everything that the module at *path* calls, as it is written there."""
    return [ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_there_is_one_way_out(path: Path) -> None:
    """Connections end in `Websocket.close` alone: nothing else closes or aborts a transport or aiohttp's response."""
    ends = [call for call in calls(path) if call.endswith((".abort", "transport.close", "response.close"))]
    assert not ends or path.name == "websocket.py", ends


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_no_string_of_a_client_finds_code(path: Path) -> None:
    """No pickle, no eval, no regular expression made at run time, no attribute looked up by a name that came in."""
    tree = ast.parse(path.read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert not names & {"pickle", "marshal", "shelve"}
    assert not {"eval", "exec", "__import__"} & set(calls(path))
    in_functions = [
        ast.unparse(node.func)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Call)
    ]
    assert not [call for call in in_functions if call in ("re.compile", "re.match", "re.search", "re.fullmatch")]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_a_room_can_be_read_in_one_sitting(path: Path) -> None:
    """At most 400 lines, and a first line that says where in the house the module stands."""
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    docstring = ast.get_docstring(ast.parse(text)) or ""
    assert path == HOUSE / "__init__.py" or docstring.startswith("Floor ")
