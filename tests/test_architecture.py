"""The house keeps its shape: who may import whom, and what costs time only when it is used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dmp_cli

ROOT = Path(__file__).parent.parent / "dmp_cli"

# Each group imports only groups before it; members of a group do not import each other.
GROUPS = (
    {"errors", "__init__"},
    {"classes", "colour", "plan", "allocation", "connection", "unfinished", "urls"},
    {"cloud"},
    {"storage"},
    {
        "files",
        "marks",
        "inputs.__init__",
        "outputs.__init__",
        "digests",
        "importing.__init__",
        "publishing.__init__",
    },
    {
        "inputs.planes",
        "inputs.pictures",
        "inputs.clip",
        "outputs.panels",
        "store",
        "download",
        "importing.archives",
    },
    {"finding", "inputs.radiance", "inputs.tiffs", "inputs.video", "outputs.writers", "hub"},
    {"manifest"},
    {"standing", "arrivals"},
    {"signals"},
    {"tasks", "jobs", "images", "device", "diffusion", "lora", "compatibility"},
    {"outputs.export", "outputs.legend", "outputs.sheet"},
    {"mapfiles", "outputs.movie"},
    {"shards"},
    {"catalogue", "captions", "maps", "metrics", "naming"},
    {"header", "prompts", "sources", "importing.drive"},
    {"importing.recognition", "decoders"},
    {"scenes.__init__", "scenes.materials"},
    {"scenes.shapes"},
    {"scenes.world"},
    {"scenes.render", "scenes.surfaces"},
    {"scenes.furniture"},
    {"scenes.build"},
    {"scenes.write"},
    {
        "networks.__init__",
        "networks.fused",
        "networks.folding",
        "networks.winograd",
        "networks.offload",
        "networks.attention",
        "networks.fetching",
    },
    {"networks.mixed"},
    {"networks.loading"},
    {"networks.text_encoder", "networks.tiny_decoder"},
    {"networks.speedup"},
    {
        "weights",
        "backbone",
        "adapters",
        "untrained",
        "data",
        "importing.bases",
        "importing.conversion",
        "importing.licences",
    },
    {"matching", "answers", "inventory", "publishing.release", "importing.wishes"},
    {"host"},
    {"deciding"},
    {"resume"},
    {"predict", "evaluate", "survey", "publishing.card", "importing.run"},
    {"engines.__init__", "engines.stream", "publishing.upload"},
    {"captioning", "engines.steps", "engines.glances"},
    {"engines.saving"},
    {"engines.flow"},
    {"engines.local", "engines.worker"},
    {"bench.__init__", "bench.figures", "bench.clock"},
    {"bench.machine", "bench.advice", "bench.passes"},
    {"bench.measure"},
    {"engines.ray_cluster", "engines.ray_work"},
    {"engines.ray_data"},
    {"engines.crew"},
    {"engines.devices"},
    {"train.__init__", "train.settings", "train.events", "train.draws", "train.stopping"},
    {"train.objective", "train.checkpoints", "train.journal", "train.result", "train.job"},
    {"train.latents", "train.validation", "train.preparation"},
    {"train.feed"},
    {"train.trainer"},
    {"train.loop"},
    {"commands.__init__", "commands.options", "commands.report"},
    {
        "commands.scores",
        "commands.train_options",
        "commands.parse",
        "commands.fetch",
        "commands.pulse",
    },
    {"commands.run_options", "commands.weights_options"},
    {"commands.pages", "commands.texts"},
    {"commands.night"},
    {"commands.run", "commands.bench_report"},
    {
        "commands.predict",
        "commands.predict_all",
        "commands.bench",
        "commands.tasks",
        "commands.doctor",
        "commands.data",
        "commands.scenes",
        "commands.train",
        "commands.eval",
        "commands.weights_import",
        "commands.weights_list",
        "commands.weights_path",
        "commands.weights_pull",
        "commands.weights_remove",
        "commands.weights_verify",
        "commands.weights_push",
        "commands.status",
        "commands.watch",
    },
    {"commands.weights"},
    {"cli"},
    {"__main__"},
)
LIBRARIES = {
    "torch": {
        "bench.machine",
        "captioning",
        "device",
        "diffusion",
        "lora",
        "networks",
        "backbone",
        "importing.conversion",
        "adapters",
        "predict",
        "train",
        "untrained",
    },
    "diffusers": {"backbone", "networks", "untrained"},
    "transformers": {"captioning", "networks", "untrained"},
    "peft": {"adapters"},
    "accelerate": {"train"},
    "tensorboard": {"train"},
    "OpenImageIO": {"inputs.planes"},
    "OpenEXR": {"outputs.writers"},
    "isal": {"outputs.writers"},
    "tifffile": {"outputs.writers"},
    "av": {"inputs.clip", "inputs.video", "outputs.movie"},
    "pillow_heif": {"images"},
    "typer": {"cli", "commands"},
    "rich": {"cli", "commands"},
    "tqdm": {"commands"},
    "huggingface_hub": {"hub", "publishing.upload"},
    "gdown": {"importing.drive"},
    "fsspec": {"cloud", "storage"},
    "s3fs": set(),
    "gcsfs": {"cloud"},
    "botocore": {"cloud"},
    "google": {"cloud"},
    "aiohttp": {"cloud"},
    "ray": {"engines.ray_cluster", "engines.ray_data", "engines.ray_work"},
}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in ROOT.rglob("*.py")
}


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports anywhere, `from a import b` as a and a.b."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def level(module: str) -> int:
    return next(i for i, group in enumerate(GROUPS) if module in group)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_only_what_stands_before_it(module: str) -> None:
    own = {name.removeprefix("dmp_cli.") for name in imports(MODULES[module])} & set(MODULES)
    if module == "__init__":  # the public names, imported when they are first asked for
        own -= {"predict", "errors"}
    assert {name for name in own if level(name) >= level(module)} == set()


@pytest.mark.parametrize("module", sorted(MODULES))
def test_what_a_module_imports_of_the_package_is_there(module: str) -> None:
    """The package has names that come when they are asked for, so no type checker looks here."""
    there = {name.split(".")[0] for name in MODULES} | {"__version__", *dmp_cli.__all__}
    asked = {
        alias.name
        for node in ast.walk(ast.parse(MODULES[module].read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "dmp_cli"
        for alias in node.names
    }
    assert asked <= there


@pytest.mark.parametrize("library", sorted(LIBRARIES))
def test_a_library_is_used_only_where_it_belongs(library: str) -> None:
    users = {
        module
        for module, path in MODULES.items()
        if any(name == library or name.startswith(library + ".") for name in imports(path))
    }
    allowed = LIBRARIES[library]
    assert {
        user for user in users if user not in allowed and user.split(".")[0] not in allowed
    } == set()


@pytest.mark.parametrize(
    "arguments",
    ["--help", "predict --help", "train --help", "eval --help", "data check --help",
     "data scenes --help", "tasks", "weights list", "weights pull --help", "--version"],
)  # fmt: skip
def test_the_quick_commands_load_no_torch(arguments: str) -> None:
    code = (
        "import sys, dmp_cli.cli as cli; sys.argv = ['dmp', *sys.argv[1:]]\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "slow = {'torch', 'diffusers', 'transformers', 'peft', 'huggingface_hub', 'PIL'}\n"
        "if 'list' in sys.argv: slow.remove('huggingface_hub')  # it says what the cache holds\n"
        "sys.exit(str(slow & set(sys.modules)) if slow & set(sys.modules) else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments.split()],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
