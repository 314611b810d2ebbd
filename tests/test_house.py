"""The rules of the house that no single room can check: imports, sizes, names, the wheel."""

from __future__ import annotations

import ast
import graphlib
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "replay" / "mmreplay"

#: docs/architecture.md: which rooms a room may import, besides the ground and itself.
GROUND = {"schema", "errors", "resources", "jit"}
_ENGINE = {"engine", "locking", "machine", "address_space", "trace"}
MAY_IMPORT: dict[str, set[str]] = {
    "schema": set(),
    "errors": set(),
    "resources": set(),
    "jit": set(),
    "trace": set(),
    "importers": {"trace"},
    "recorder": {"trace", "importers"},
    "workloads": {"trace"},
    "address_space": {"trace"},
    "locking": {"address_space.plan"},
    "machine": set(),
    "engine": {"locking", "machine", "address_space.plan"},
    "hardware": {"workloads", "trace"},
    "lockcounts": {"hardware", "workloads", *_ENGINE},
    "fit": {"hardware", "workloads", *_ENGINE},
    "predict": _ENGINE,
    "report": {"predict", "fit", "hardware", *_ENGINE},
    "cli": {
        "report",
        "predict",
        "fit",
        "importers",
        "recorder",
        "workloads",
        "hardware",
        "lockcounts",
        *_ENGINE,
    },
}
#: Third-party modules that ``mmreplay --help`` may load.
HELP_MAY_LOAD = {"click"}
MOST_LINES = 620


def _tracked() -> list[Path]:
    """Files that git tracks, or would: everything that it does not ignore."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.decode()
    files = [ROOT / name for name in listed.split("\0") if name]
    return [file for file in files if file.is_file()]


def _modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def _imports(file: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name, below ``mmreplay``, of each import of ours in the file."""
    inside = file.relative_to(PACKAGE.parent).with_suffix("").parts
    package = inside if file.name == "__init__.py" else inside[:-1]
    package = tuple(part for part in package if part != "__init__")
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Constant) and re.fullmatch(r"mmreplay(\.\w+)+", str(node.value)):
            names = [str(node.value)]  # loaded by name: native_of, import_module, -m
        else:
            continue
        for name in names:
            if name.split(".")[0] == "mmreplay" and name.count("."):
                yield node.lineno, name.partition(".")[2]


def _allowed(room: str, wanted: str) -> bool:
    target = wanted.split(".")[0]
    if target in GROUND or target == room or target.startswith("__"):
        return True
    return any(f"{wanted}.".startswith(f"{allowed}.") for allowed in MAY_IMPORT[room])


def test_every_room_is_known() -> None:
    rooms = {path.name.removesuffix(".py") for path in PACKAGE.iterdir()}
    rooms -= {"__init__", "__main__", "__pycache__", "content", "py.typed"}
    assert rooms <= set(MAY_IMPORT), "a new room: say here and in docs/architecture.md what it uses"


def test_imports_point_one_way() -> None:
    wrong = []
    for file in _modules():
        room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room in ("__init__", "__main__"):
            continue
        for line, wanted in _imports(file):
            # `from mmreplay import x` imports a room or a plain name of the package.
            if not _allowed(room, wanted) and wanted.split(".")[0] in MAY_IMPORT:
                wrong.append(f"{file.relative_to(ROOT)}:{line} imports mmreplay.{wanted}")
    assert wrong == []


def _graph() -> dict[str, set[str]]:
    """Each module, and those that it imports: at any time, or for its types only."""
    modules = {}
    for file in _modules():
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        modules[".".join(part for part in parts if part != "__init__")] = file
    graph: dict[str, set[str]] = {}
    for module, file in modules.items():
        graph[module] = set()
        for _, wanted in _imports(file):
            name = wanted if wanted in modules else wanted.rpartition(".")[0]
            if name in modules and name != module:
                graph[module].add(name)
    return graph


def test_modules_import_each_other_in_no_circle() -> None:
    graph = _graph()
    assert "engine.setup" in graph["engine.processors"]
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_rooms_of_a_room_point_one_way() -> None:
    rooms: dict[str, set[str]] = {}
    for module, wanted in _graph().items():
        own = module.rpartition(".")[0]
        if own.count("."):
            rooms.setdefault(own, set()).update(
                room for name in wanted if (room := name.rpartition(".")[0]).count(".")
            )
    assert "importers.pairing" in rooms["importers.output"]
    for own, used in rooms.items():
        used.discard(own)
    try:
        graphlib.TopologicalSorter(rooms).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_the_import_scan_sees_what_it_must_refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also inside functions and in relative form."""
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path / "mmreplay")
    file = tmp_path / "mmreplay" / "engine" / "loop.py"
    file.parent.mkdir(parents=True)
    file.write_text(
        "from mmreplay.address_space.plan import Plan\n"
        "import mmreplay.cli.show\n"
        "def f():\n"
        "    from ..predict import gains\n"
        "    from .result import Result\n"
    )
    refused = [(line, name) for line, name in _imports(file) if not _allowed("engine", name)]
    assert refused == [(2, "cli.show"), (4, "predict.gains")]


def test_help_loads_only_click() -> None:
    code = (
        "import json, sys\n"
        "before = set(sys.modules)\n"
        "from mmreplay.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in set(sys.modules) - before})))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    third_party = loaded - set(sys.stdlib_module_names) - {"mmreplay", "__mp_main__"}
    assert {name for name in third_party if not name.startswith("_")} <= HELP_MAY_LOAD


def test_every_command_of_the_table_answers_help() -> None:
    from click.testing import CliRunner

    from mmreplay.cli.main import COMMANDS, cli

    for name, (module, _) in COMMANDS.items():
        assert (PACKAGE.parent / Path(*module.split("."))).with_suffix(".py").is_file(), (
            f"the command {name} has no module {module}"
        )
        result = CliRunner().invoke(cli, [name, "--help"])
        assert result.exit_code == 0, f"mmreplay {name} --help: {result.output}"
        assert "Usage:" in result.output


def test_files_stay_short() -> None:
    """Code and prose; content (models, datasets) is as long as what it describes."""
    long = {}
    for file in _tracked():
        if file.relative_to(ROOT).parts[0] in ("models", "datasets"):
            continue
        if file.name == "loop.py":  # the compiled loop is one function
            continue
        if file.suffix in (".py", ".toml", ".md") and file.name != "trace-format.md":
            lines = file.read_text(encoding="utf-8").count("\n")
            if lines > MOST_LINES:
                long[str(file.relative_to(ROOT))] = lines
    assert long == {}


# Spelt in parts, so that this file does not hold what it looks for.
_FORBIDDEN = [
    "/wo" + "rk/",
    "/opt/" + "mmr",
    "sha" + "red/",
    "pypi." + "org",
    "python" + "hosted.org",
    "files.python" + "hosted",
    "artifac" + "tory",
    "--index" + "-url",
    "--extra-index" + "-url",
    "issue" + r" [AB]\b",
]


def test_no_file_names_the_workplace_or_a_registry() -> None:
    pattern = re.compile("|".join(_FORBIDDEN))
    found = []
    for file in _tracked():
        if file == Path(__file__):
            continue
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if pattern.search(line):
                found.append(f"{file.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert found == []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built by hatchling itself: nothing is fetched."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    builders = pytest.importorskip("hatchling.builders.wheel")
    builder = builders.WheelBuilder(str(ROOT))
    (built,) = builder.build(directory=str(tmp_path_factory.mktemp("wheel")), versions=["standard"])
    return zipfile.ZipFile(built)


def test_the_wheel_installs_one_name(wheel: zipfile.ZipFile) -> None:
    top = {name.split("/")[0] for name in wheel.namelist()}
    assert {name for name in top if not name.endswith(".dist-info")} == {"mmreplay"}


def test_the_wheel_holds_code_and_content(wheel: zipfile.ZipFile) -> None:
    held = set(wheel.namelist())
    for file in _modules():
        assert str(file.relative_to(PACKAGE.parent)) in held
    for file in _tracked():
        inside = file.relative_to(ROOT)
        if inside.parts[0] in ("models", "datasets"):
            assert f"mmreplay/content/{inside}" in held, f"{inside} is not in the wheel"


def test_the_wheel_has_the_command_and_the_licence(wheel: zipfile.ZipFile) -> None:
    (entry,) = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    assert "mmreplay = mmreplay.cli.main:main" in wheel.read(entry).decode()
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())
