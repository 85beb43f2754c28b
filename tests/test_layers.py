"""Arrows between modules point one way, downward; this test is what keeps them so."""

import ast
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "sekali"

# From the top of the house to its ground. A module may import from its own layer only where that says so, and from
# any layer below.
LAYERS: list[tuple[str, ...]] = [
    ("__main__",),
    ("cli",),
    ("bench",),
    ("service",),
    ("admission", "logs", "tls"),
    ("api",),
    ("subscriptions",),
    ("consumer", "testing"),
    ("writer",),
    ("tickets", "feed"),
    ("blocks",),
    ("stores", "keyfile"),
    ("ports", "decode", "metrics"),
    ("event", "keys", "delivery"),
    ("jsonvalue", "timestamps", "topics"),
    ("errors", "settings", "printable"),
    ("simulator",),
    ("client",),
    ("__init__",),
]
INSIDE_ITS_OWN = {
    "cli",
    "bench",
    "api",
    "subscriptions",
    "testing",
    "stores",
    "client",
}  # packages whose modules may import one another
FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 70


def modules() -> dict[str, ast.Module]:
    return {str(path.relative_to(SOURCE).with_suffix("")): ast.parse(path.read_text()) for path in SOURCE.rglob("*.py")}


def layer_of(module: str) -> int:
    top = module.split("/", maxsplit=1)[0]
    (found,) = [number for number, layer in enumerate(LAYERS) if top in layer]
    return found


def imports(tree: ast.Module) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            if node.module == "sekali":
                found |= {f"sekali.{alias.name}" for alias in node.names}
            else:
                found.add(node.module)
    return found


def test_arrows_point_downward() -> None:
    wrong = []
    for module, tree in modules().items():
        for name in imports(tree):
            if not name.startswith("sekali."):
                continue
            target = name.removeprefix("sekali.").split(".")[0]
            target = "__init__" if target.startswith("__") else target
            top = module.split("/")[0]
            if target == top and top in INSIDE_ITS_OWN:
                continue
            if layer_of(target) <= layer_of(module):
                wrong.append(f"{module} -> {name}")
    assert wrong == []


def test_the_consumer_and_the_edge_know_no_store() -> None:
    for module, tree in modules().items():
        if module == "consumer" or module.startswith("api/"):
            assert not [name for name in imports(tree) if name.startswith("sekali.stores")], module


def test_stores_do_not_know_each_other() -> None:
    for module, tree in modules().items():
        if module.startswith("stores/sqlite"):
            assert not [name for name in imports(tree) if name.startswith("sekali.stores.memory")]
        if module.startswith("stores/memory"):
            others = [name for name in imports(tree) if name.startswith("sekali.stores")]
            assert not [name for name in others if not name.startswith("sekali.stores.memory")]


def test_the_pure_core_does_no_io_and_reads_no_clock() -> None:
    forbidden = {"asyncio", "threading", "socket", "os", "time", "random", "secrets", "pathlib", "apsw", "structlog"}
    for module, tree in modules().items():
        if layer_of(module) in range(layer_of("ports"), layer_of("errors")) and module != "metrics":
            assert not imports(tree) & forbidden, module


def test_importing_the_client_brings_in_nothing_of_the_server() -> None:
    code = (
        "import sys; before = set(sys.modules); import sekali.client, sekali.client.http; "
        "print('\\n'.join(set(sys.modules) - before))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    tops = {name.split(".")[0] for name in loaded}
    ours = {"msgspec", "fastapi", "starlette", "pydantic", "apsw", "uvicorn", "structlog", "typer", "numpy", "rich"}
    assert tops & (ours | {"psycopg", "prometheus_client", "sqlite3"}) == set()
    assert tops - sys.stdlib_module_names - {"sekali", "urllib3", "__main__"} <= {"h2", "brotli", "zstandard", "socks"}
    assert not [name for name in loaded if name.startswith("sekali.") and not name.startswith("sekali.client")]


def test_files_and_functions_fit_in_a_head() -> None:
    for path in SOURCE.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= FILE_LINES_MAX, path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                # From the first statement: a command's options are its documentation.
                assert (node.end_lineno or 0) - node.body[0].lineno < FUNCTION_LINES_MAX, f"{path}: {node.name}"
