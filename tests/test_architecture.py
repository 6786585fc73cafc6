"""The house stands: rooms import only from below, files stay small, one list of packages, versions pinned."""

import ast
import re
import subprocess
import sys
import tokenize
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
# from the ground up: a wing imports only from itself and from wings named before it
WINGS = [
    "core", "metrics", "scans", "degradations", "models", "synthesis", "data", "training", "inference", "systems",
    "evaluation", "enhance", "cli", "__main__",
]  # fmt: skip
FILES = sorted((ROOT / "srlib").rglob("*.py"))
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in FILES
}


def imported(path: Path) -> set[str]:
    """The modules of the package that a file imports; a name handed on by a wing counts as the wing."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if (
            isinstance(node, ast.ImportFrom)
            and node.module
            and node.module.split(".")[0] == "srlib"
        ):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("srlib.")}
    return found - {"srlib"}


def test_wings_import_only_from_below():
    for path in FILES:
        wing = path.relative_to(ROOT / "srlib").parts[0].removesuffix(".py")
        below = WINGS[: WINGS.index(wing) + 1] if wing in WINGS else []
        assert {name.split(".")[1] for name in imported(path)} <= set(below), path


def test_no_import_leads_back_to_its_file():
    arrows = {name: imported(path) - {name} for name, path in MODULES.items()}
    while leaves := [name for name, to in arrows.items() if not to & arrows.keys()]:
        for name in leaves:
            del arrows[name]
    assert not arrows, f"a circle among {sorted(arrows)}"


def test_networks_import_only_what_they_share():
    shared = {"srlib.models.layers", "srlib.core.paths", "srlib.scans.patches"}
    for path in (ROOT / "srlib" / "models").glob("*.py"):
        if path.stem in ("mdcsrn", "recnn", "robust", "srgan3d", "srresnet2d", "unet3d"):
            assert imported(path) <= shared, path


def test_the_house_has_few_doors():
    entries = [path for path in (ROOT / "srlib").iterdir() if path.name != "__pycache__"]
    assert len(entries) <= 18
    for path in (ROOT / "srlib").glob("*/__init__.py"):
        assert path.read_text().count("\n") < 40


def test_files_are_short_documented_and_device_free():
    for path in FILES:
        text = path.read_text()
        assert text.count("\n") < 400, path
        assert ast.get_docstring(ast.parse(text)), "a module has a docstring"
        assert ".cuda()" not in text, path
        assert path.parent.name == "scans" or "import nibabel" not in text, path


def test_text_is_read_and_written_in_a_stated_encoding():
    for path in FILES:
        for call in (
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
        ):
            name = ast.unparse(call.func).rpartition(".")[2]
            opens = ast.unparse(call.func) == "open" and not any(
                ast.unparse(a) in ("'rb'", "'wb'", "'ab'") for a in call.args
            )
            runs = any(
                word.arg == "text" for word in call.keywords
            ) and "subprocess" in ast.unparse(call.func)
            if opens or runs or name in ("read_text", "write_text"):
                # ** is looked at by who writes it
                stated = {"encoding", None} & {
                    word.arg for word in call.keywords
                } or "'utf-8'" in map(ast.unparse, call.args)
                assert stated, f"{path}, line {call.lineno}: {ast.unparse(call)}"


def tokens(path: Path) -> int:
    """Python tokens of a file without comments, docstrings and layout."""
    layout = {"COMMENT", "NL", "NEWLINE", "INDENT", "DEDENT", "ENDMARKER", "ENCODING"}
    tree, prose = ast.parse(path.read_text()), set()
    for node in ast.walk(tree):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if documented and ast.get_docstring(node) is not None:
            prose.add((node.body[0].lineno, node.body[0].col_offset))
    with open(path, "rb") as file:
        found = [
            t for t in tokenize.tokenize(file.readline) if tokenize.tok_name[t.type] not in layout
        ]
    return sum(token.start not in prose for token in found)


def test_the_package_stays_thin():
    assert sum(map(tokens, FILES)) < 114_880


def test_types_agree():
    words = [sys.executable, "-m", "mypy", "--no-error-summary"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_public_functions_have_docstrings_and_annotations():
    for path in FILES:
        if path.parent.name == "cli":
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
        re.match(r"([\w-]+)(.*)", line).groups()
        for line in lines
        if line not in ("conda-forge", "pip", "pip:")
    )
    assert conda.pop("python") == ">=3.11"
    conda["torch"] = conda.pop("pytorch")
    assert conda == requirements()


def test_every_requirement_is_pinned():
    pins = re.findall(r"^([\w.-]+)==\S+$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert {name.lower() for name in requirements()} <= {name.lower() for name in pins}
