"""The house keeps its order: imports go up, the core knows no conditioner, and what must not load torch does not."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "ldmkit"

# Each line imports only from those above it, and within a line only from the left.
LAYERS = """
errors messages random hub fields files images
plugins recipe
image_features
schedules conditioning denoiser autoencoder
diffusion guidance samplers losses
latent_diffusion
data
assembly interop testing
training evaluation planning
runs
cli
"""
# The package's own face: names that load on first use, and the command for `python -m`.
FACES = ("__init__", "__main__")
CONDITIONERS = ("class", "low-res", "low_res", "semantic-map", "semantic_map", "text", "inpainting", "layout")


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] != "__pycache__")


def part(module: str) -> str:
    """`ldmkit.denoiser.attention` -> `nn`."""
    return module.split(".")[1] if "." in module else ""


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """The parts of ldmkit that a file imports, wherever in the file; imports for type checkers alone do not count."""
    tree = ast.parse(path.read_text("utf-8"))
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from ((part(alias.name), node.lineno) for alias in node.names if alias.name.startswith("ldmkit."))
        elif isinstance(node, ast.ImportFrom) and node.module == "ldmkit":
            yield from ((alias.name, node.lineno) for alias in node.names if is_part(alias.name))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ldmkit."):
            yield part(node.module or ""), node.lineno


def is_part(name: str) -> bool:
    return (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()


def order() -> dict[str, int]:
    return {name: number for number, name in enumerate(LAYERS.split())}


def test_every_part_has_a_place():
    parts = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in modules()} - set(FACES)
    assert parts - set(order()) == set()


@pytest.mark.parametrize("own", sorted(order()))
def test_imports_go_up(own):
    places = order()
    files = [path for path in modules() if path.relative_to(PACKAGE).parts[0].removesuffix(".py") == own]
    wrong = [
        f"{path.relative_to(PACKAGE)}, line {line}: {name}"
        for path in files
        for name, line in imported(path)
        if name != own and places.get(name, -1) > places[own]
    ]
    assert wrong == [], f"ldmkit/{own} imports from below: {wrong}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_the_core_names_no_conditioner_and_imports_no_plugin(path):
    tree = ast.parse(path.read_text("utf-8"))
    docstrings = {
        node.body[0].value
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            assert not any(name.startswith("ldmkit_") for name in names), f"line {node.lineno} imports a plugin"
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings:
            assert node.value not in NAMES_OF_CONDITIONERS, f"line {node.lineno} names the conditioner {node.value!r}"


# Words that mean nothing else; `class` and `text` are words of the language and kinds of data fields too.
NAMES_OF_CONDITIONERS = ("low-res", "low_res", "semantic-map", "semantic_map")


def test_no_comparison_with_a_conditioners_name():
    """`type == "text"`, `slot == "class"` and the like: a conditioner may not be told by its name."""
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Compare):
                continue
            left = ast.unparse(node.left)
            words = [part.value for part in node.comparators if isinstance(part, ast.Constant)]
            constants = [part for part in node.comparators if isinstance(part, ast.Name | ast.Attribute)]
            if left.rpartition(".")[2] in ("type", "slot", "entry_point"):
                assert not set(words) & set(CONDITIONERS), f"{path.name}:{node.lineno}"
            if left.endswith("slot.type"):  # nor by a constant that holds one; nor may the core's own be
                assert "given" not in words, f"{path.name}:{node.lineno}"
                assert not any(ast.unparse(part).rpartition(".")[2].isupper() for part in constants), path.name


def test_the_core_has_one_conditioner_and_it_knows_no_modality():
    """What is encoded elsewhere is handed on: nothing is read but `value`, and there is nothing to train."""
    from ldmkit import plugins

    registry = plugins.load(only=())
    assert registry.conditioners.names() == ("given",)
    made = registry.conditioners.create("given", {"tokens": 4, "length": 2, "vector": 3, "concat": 1})
    assert (made.reads, made.aligned, made.frozen) == (("value",), (), ())
    assert made.state_dict() == {}


PLUGIN_FOLDERS = sorted(path for path in (ROOT / "plugins").glob("*/ldmkit_*") if path.is_dir())


@pytest.mark.parametrize("folder", PLUGIN_FOLDERS, ids=lambda folder: folder.name)
def test_a_plugin_imports_no_other_plugin(folder):
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            others = [name for name in names if name.startswith("ldmkit_") and name.split(".")[0] != folder.name]
            assert others == [], f"{path.name}:{node.lineno}"


def loads(code: str) -> set[str]:
    """Which heavy packages a program has loaded when it ends."""
    heavy = {"torch", "transformers", "torchvision", "numpy", "rich", "PIL"}
    probe = f"import sys; print(' '.join(sorted({heavy} & set(sys.modules))))"
    result = subprocess.run([sys.executable, "-c", f"{code}\n{probe}"], capture_output=True, text=True, check=True)
    return set(result.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "code",
    [
        "import ldmkit; ldmkit.__version__; ldmkit.Recipe; ldmkit.load_recipe",
        "from ldmkit import hookimpl",
        "import ldmkit.errors, ldmkit.plugins.hookspecs, ldmkit.plugins.defaults, ldmkit.plugins.options",
        "import ldmkit.plugins, ldmkit.recipe, ldmkit.cli",
        "import ldmkit.plugins; ldmkit.plugins.load()",
        "import ldmkit_class, ldmkit_text, ldmkit_low_res, ldmkit_semantic_map",
    ],
)
def test_these_load_no_torch(code):
    assert loads(code) == set()


COMMANDS = [
    ["--help"],
    [],
    ["run", "--help"],
    ["sample", "--help"],
    ["plan", "--help"],
    ["ema", "--help"],
    ["verify-resume", "--help"],
    ["plugins", "list"],
    ["plugins", "list", "--json"],
    ["recipe", "list"],
    ["recipe", "schema"],
    ["recipe", "check", "superres"],
]


def test_these_commands_load_no_torch():
    lines = ["import ldmkit.cli"]
    for arguments in COMMANDS:
        lines.append(
            f"try: ldmkit.cli.main({arguments!r})\nexcept SystemExit as stop: assert stop.code == 0, {arguments!r}"
        )
    assert loads("\n".join(lines)) == set()


def test_no_module_is_called_like_a_public_function():
    """Python sets a submodule as an attribute of its package, which would hide a function of the same name."""
    import ldmkit

    modules = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert modules & set(ldmkit.__all__) == set()


def test_every_public_name_is_there():
    import ldmkit

    for name in ldmkit.__all__:
        assert getattr(ldmkit, name) is not None


def calls() -> Iterator[tuple[Path, ast.Call, str]]:
    """Every call in ldmkit and the plugins: its file, and the name that is called."""
    for path in [*modules(), *(path for folder in PLUGIN_FOLDERS for path in folder.rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                yield path, node, ast.unparse(node.func)


def test_no_file_is_unpickled_and_no_code_is_fetched():
    """torch reads weights only, pickles are read by the reader that stubs them, and transformers runs no code of a model."""
    seen = set()
    for path, call, name in calls():
        given = {word.arg: ast.unparse(word.value) for word in call.keywords}
        where = f"{path.relative_to(ROOT)}:{call.lineno}"
        if name == "torch.load":
            assert given.get("weights_only") == "True", where
        assert given.get("trust_remote_code", "False") == "False", where
        if name.startswith("Auto") and name.endswith(".from_pretrained"):
            assert given.get("trust_remote_code") == "False", where
        assert name not in ("pickle.load", "torch.hub.load", "joblib.load"), where
        if name == "pickle.loads":  # what a process of ours sent another
            assert path.name in ("single_file.py", "preparation.py"), where
        if name in ("torch.load", "AutoTokenizer.from_pretrained"):
            seen.add(name)
    assert seen == {"torch.load", "AutoTokenizer.from_pretrained"}


@pytest.mark.parametrize("folder", ["recipe", "losses", "denoiser"])
def test_a_folder_has_no_cycle_of_imports(folder):
    """Those for type checkers included."""
    names = {
        f"ldmkit.{folder}.{path.stem}": path for path in (PACKAGE / folder).glob("*.py") if path.stem != "__init__"
    }
    graph: dict[str, set[str]] = {name: set() for name in names}
    for name, path in names.items():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == f"ldmkit.{folder}":
                graph[name] |= {f"{node.module}.{alias.name}" for alias in node.names} & names.keys()
            elif isinstance(node, ast.ImportFrom) and node.module in names:
                graph[name].add(node.module)
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


def test_did_you_mean_stands_once():
    users = {
        path.relative_to(PACKAGE).as_posix() for path in modules() if "get_close_matches" in path.read_text("utf-8")
    }
    assert users == {"messages.py"}


def test_a_unets_stages_are_listed_once():
    """All others ask `blocks()`."""
    listed = "*self.input_blocks, self.middle_block"
    users = {path.relative_to(PACKAGE).as_posix() for path in modules() if listed in path.read_text("utf-8")}
    assert users == {"denoiser/unet.py"}
    assert not any("input_blocks, unet.middle_block" in path.read_text("utf-8") for path in modules())


def imports_of(path: Path, names: set[str]) -> set[str]:
    """The modules of `names` that a file imports, type-only imports included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inner & names or {node.module}
    return found & names


def test_no_import_cycle_is_left():
    """Type-only imports and those inside functions count too: two files that know one another are one file."""
    paths = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in modules()}
    paths = {name.removesuffix(".__init__"): path for name, path in paths.items()}
    TopologicalSorter({name: imports_of(path, set(paths)) for name, path in paths.items()}).prepare()
