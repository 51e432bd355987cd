"""The rules of the house that a reader cannot see at a glance, held by test."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src" / "tomoline"
MODULES = sorted(SRC.rglob("*.py"))
SCRIPTS = sorted((ROOT / "workflow" / "scripts").glob("*.py"))

# Each name may import from its own level's own package and from the levels above it.
LEVELS = (
    {"errors", "log", "processor"},
    {"settings", "settings_docs", "contracts"},
    {"io", "ops", "networks"},
    {"kernels", "infer", "export"},
    {"training", "simulation", "evaluation", "report"},
    {"peers"},
    {"stages"},
    {"cli", "warm"},
)


def part_of(path: Path) -> str:
    relative = path.relative_to(SRC)
    return relative.parts[0].removesuffix(".py")


def level_of(part: str) -> int:
    return next(n for n, names in enumerate(LEVELS) if part in names)


def imported(path: Path) -> set[str]:
    """First names below `tomoline` that a module imports, wherever in it."""
    parts = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        parts |= {name.split(".")[1] for name in names if name.startswith("tomoline.")}
    return parts


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SRC)))
def test_imports_go_only_downwards(path: Path) -> None:
    own = part_of(path)
    if own == "__init__":
        return
    for part in imported(path) - {own, "__version__"}:
        assert level_of(part) <= level_of(own), f"{own} imports {part}"
        if level_of(part) == level_of(own):
            assert level_of(own) < 2 or (own, part) in {
                # networks are run by their kernels; the evaluation's tables feed the report
                ("infer", "kernels"),
                ("report", "evaluation"),
                ("training", "simulation"),
                # held-out images are scored as results are
                ("training", "evaluation"),
                ("networks", "ops"),
                ("networks", "io"),
                ("io", "ops"),
            }, f"{own} and {part} are on one level"


def test_a_settings_only_import_does_not_load_torch() -> None:
    for name in ("settings", "settings_docs", "contracts", "errors", "log"):
        assert "torch" not in (SRC / f"{name}.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SRC)))
def test_library_never_mentions_the_workflow_engine_in_code(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    imports = {
        alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names
    } | {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert not [name for name in names | imports if name.split(".")[0] == "snakemake"]


FORBIDDEN = re.compile(r"\bpickle\b|allow_pickle=True|shell=True|os\.system\(")


@pytest.mark.parametrize("path", [*MODULES, *SCRIPTS], ids=lambda p: p.name)
def test_nothing_that_bad_input_could_abuse(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not FORBIDDEN.findall(text)
    for call in (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func)
        assert name not in {"eval", "exec", "yaml.load", "yaml.unsafe_load"}, name
        if name == "torch.load":  # a checkpoint of our own: tensors and plain values only
            assert "weights_only=True" in ast.unparse(call)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_scripts_only_adapt(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 20
    tree = ast.parse("\n".join(lines))
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.For | ast.While | ast.FunctionDef)]
    assert "log=snakemake.log[0]" in "\n".join(lines)


def test_every_rule_has_its_script_and_every_script_its_rule() -> None:
    text = "".join(p.read_text() for p in (ROOT / "workflow" / "rules").glob("*.smk"))
    used = set(re.findall(r'script:\s*"\.\./scripts/([a-z_]+)\.py"', text))
    assert used == {path.stem for path in SCRIPTS}
