"""The house stands: rooms import only from below, files stay small, one list of packages, versions pinned."""

import ast
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
# a room imports only from rooms named before it
ORDER = [
    "paths", "tables", "workers", "experiments", "device",
    "dicom", "headers", "volume", "space", "images", "inputs", "checks", "views", "tomography", "patches", "degrade", "ultrasound",
    "metrics", "losses", "models", "fields", "slices", "priors", "generator", "phantoms", "foreign", "published",
    "results", "data", "dataset", "mixture", "synthetic", "store", "layouts", "convert", "figures", "report", "example",
    "label_maps", "weights", "phases", "validate", "train", "tiled", "synthesis", "infer", "batch", "evaluate",
    "benchmark", "viewer", "run", "readme", "cli_enhance", "cli", "__main__",
]  # fmt: skip
FILES = sorted((ROOT / "srlib").rglob("*.py"))


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "srlib":
            inside = node.module.split(".")[1:]
            rooms |= {inside[0]} if inside else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            rooms |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("srlib.")}
    return rooms - {"__version__"}


def test_rooms_import_only_from_below():
    for path in FILES:
        room = path.relative_to(ROOT / "srlib").parts[0].removesuffix(".py")
        if room == "__init__":
            assert not imported_rooms(path)
            continue
        below = ORDER[: ORDER.index(room)]
        parts = path.name == "__init__.py" or room == "experiments"
        own = (
            {room} if parts or "srlib.models.layers" in path.read_text() else set()
        )  # networks never import each other
        assert imported_rooms(path) <= {*below, *own}, path


def test_files_are_short_documented_and_device_free():
    for path in FILES:
        text = path.read_text()
        assert text.count("\n") < 400, path
        assert ast.get_docstring(ast.parse(text)), "a module has a docstring"
        assert ".cuda()" not in text, path
        assert path.name in ("headers.py", "volume.py") or "import nibabel" not in text, path


def test_text_is_read_and_written_in_a_stated_encoding():
    for path in FILES:
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            name = ast.unparse(call.func).rpartition(".")[2]
            opens = ast.unparse(call.func) == "open" and not any(
                ast.unparse(a) in ("'rb'", "'wb'", "'ab'") for a in call.args
            )
            runs = any(word.arg == "text" for word in call.keywords) and "subprocess" in ast.unparse(call.func)
            if opens or runs or name in ("read_text", "write_text"):
                # ** is looked at by who writes it
                stated = {"encoding", None} & {word.arg for word in call.keywords} or "'utf-8'" in map(
                    ast.unparse, call.args
                )
                assert stated, f"{path}, line {call.lineno}: {ast.unparse(call)}"


def test_the_package_stays_thin():
    assert sum(p.read_text().count("\n") for p in FILES) < 11700


def test_public_functions_have_docstrings_and_annotations():
    for path in FILES:
        if path.name.startswith("cli"):
            continue
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path.name}: {node.name}"
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                bare = [a.arg for a in node.args.args if a.annotation is None]
                assert not bare, f"{path.name}: {node.name}({', '.join(bare)})"


def requirements() -> dict[str, str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return dict(re.match(r"([\w-]+)(.*)", line).groups() for line in project["dependencies"])


def test_conda_environment_equals_pyproject():
    lines = re.findall(r"^  - (\S+)$", (ROOT / "environment.yml").read_text(), re.MULTILINE)
    conda = dict(
        re.match(r"([\w-]+)(.*)", line).groups() for line in lines if line not in ("conda-forge", "pip", "pip:")
    )
    assert conda.pop("python") == ">=3.11"
    conda["torch"] = conda.pop("pytorch")
    assert conda == requirements()


def test_every_requirement_is_pinned():
    pins = re.findall(r"^([\w.-]+)==\S+$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert {name.lower() for name in requirements()} <= {name.lower() for name in pins}
