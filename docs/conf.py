"""The documentation: Markdown in, one furo site out, built offline."""

from importlib.metadata import version as version_of

project = "openapi_ws"
copyright = "the openapi_ws authors"
release = version = version_of("openapi-ws")

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"openapi_ws {release}"
html_static_path = ["_static"]

myst_heading_anchors = 3

default_role = "py:obj"
autodoc_mock_imports = ["prometheus_client", "redis"]  # of extras, whose names are not described here
autodoc_member_order = "bysource"
add_module_names = False
toc_object_entries_show_parents = "hide"

nitpicky = True
nitpick_ignore_regex = [
    # Other projects' names: linking them needs their inventories, and the build needs no network.
    ("py:.*", r"(_?asyncio|aiohttp|collections|contextvars|prometheus_client|pydantic|pydantic_core|redis|types)\..*"),
    # Names in signatures that nobody writes: a type variable, and what one module asks of another.
    ("py:class", r"openapi_ws\.(rpc\.Function|steps\.Result|channels\.Source|calls\.View|websocket\.Activity)"),
    # A union of types of redis-py is written with their bare names.
    ("py:class", "Redis(Cluster)?"),
    # Constants, which are not public; the pages give their figures.
    ("py:obj", "[A-Z_]+"),
]


def mark_raises(app, what, name, obj, options, lines):
    """Make fields of the lines below ``Raises:``, which end a docstring."""
    if "Raises:" in lines:
        start = lines.index("Raises:")
        raised = []
        for line in filter(None, lines[start + 1 :]):
            if line.startswith(" " * 8):  # it goes on
                raised[-1] += f" {line.strip()}"
            else:
                raised.append(f":raises {line.strip()}")
        lines[start:] = ["", *raised, ""]


def find_nearest(app, env, node, contnode):
    """Link a bare name to what has it: in the same module, or the outermost anywhere."""
    domain, home = env.get_domain("py"), node.get("py:module") or ""
    named = [name for name in domain.objects if name.endswith("." + node["reftarget"])]
    if not named:
        return None
    nearest = min(named, key=lambda name: (not name.startswith(home), name.count(".")))
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", nearest, node, contnode)


def setup(app):
    app.connect("autodoc-process-docstring", mark_raises)
    app.connect("missing-reference", find_nearest)
