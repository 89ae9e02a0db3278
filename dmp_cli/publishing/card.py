"""A release as the README of its repository: front matter for the Hub, text for people."""

import json
import re
from typing import Any

from dmp_cli.header import ASSUMED, NOT_STATED
from dmp_cli.publishing.release import BACKBONE_FOLDER, Adapter, Release, stanza
from dmp_cli.tasks import TASKS

MARK = "<!-- written by `dmp weights push`, which writes it anew as long as this line is here -->"
# What the Hub takes as `license` (its own validator lists them in its error); any other text goes
# there as `other` with a `license_name`.
_IDENTIFIERS = (
    "afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m "
    "bigscience-bloom-rail-1.0 bigscience-openrail-m bsd bsd-2-clause bsd-3-clause "
    "bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 "
    "cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 "
    "cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 "
    "cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m "
    "deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 "
    "fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 grok2-community "
    "h-research intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 "
    "llama3.2 llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 "
    "openmdw-1.0 openrail openrail++ osl-3.0 pddl postgresql unknown unlicense wtfpl zlib"
)
LICENSES = frozenset(_IDENTIFIERS.split())
_PIPELINES: dict[tuple[str, ...], str] = {
    ("depth",): "depth-estimation",
    ("segmentation",): "image-segmentation",
}
_PAPER = (
    "The method is DMP: Lee, Tseng, Lee and Yang, *Exploiting Diffusion Prior for Generalizable\n"
    "Dense Prediction*, CVPR 2024, [arXiv:2311.18832](https://arxiv.org/abs/2311.18832). Please "
    "cite it\nif you use these files in your work."
)


def front_matter(release: Release) -> dict[str, Any]:
    """What the Hub reads: library, base model, licence, task and tags."""
    tasks = tuple(adapter.task for adapter in release.adapters)
    base = release.entry["backbone"].get("repo")
    relation = {"base_model": base, "base_model_relation": "adapter"} if base else {}
    return {
        "library_name": "diffusers",
        **_license(release),
        **relation,
        "pipeline_tag": _PIPELINES.get(tasks, "image-to-image"),
        "tags": ["lora", "diffusers", "dmp", "stable-diffusion", *tasks],
    }


def _license(release: Release) -> dict[str, str]:
    found = {adapter.license for adapter in release.adapters}
    if found == {""}:
        return {"license": "unknown"}
    name = release.license.lower()
    if name in LICENSES - {"other"}:
        return {"license": name}
    name = re.sub(r"[^a-z0-9.]+", "-", name).strip("-.") or "see-the-table"
    return {"license": "other", "license_name": name}


def text(release: Release) -> str:
    """The README below its front matter, in Markdown. It names no folder of this machine."""
    name = release.repo.split("/")[-1]
    summary = release.entry.get("summary") or f"LoRAs for {_tasks(release)}"
    parts = [
        MARK,
        f"# {_plain(name)}",
        f"{_plain(summary)}.\n\nLoRAs for dense prediction from one photograph, a small file for "
        f"each task: {_tasks(release)}.\n{_backbone(release)}",
        "## Files",
        _table(release),
        "## With dmp",
        f"Save this as `{name}.toml`:",
        f"```toml\n{stanza(release, release.branch, folders=False).strip()}\n```",
        f"```bash\n{_command(release, name)}\n```",
        "## With diffusers",
        f"```python\n{_snippet(release)}\n```",
        "That is the network alone. It does not start from noise and makes no pictures from text: "
        "it turns the\nlatent of a photograph into the latent of a map, with these settings:",
        "\n".join(_settings(adapter) for adapter in release.adapters),
        "## What is not known",
        *_unlicensed(release),
        *_unbased(release),
        "How good the maps are was not measured when these files were published. Axes of normals "
        "and the scale\nof depth are as their entry states them; compare them with something known "
        "before you rely on them.",
        "## Paper",
        _PAPER,
    ]
    return "\n\n".join(parts) + "\n"


def _unlicensed(release: Release) -> list[str]:
    silent = ", ".join(adapter.task for adapter in release.adapters if not adapter.license)
    if not silent:
        return []
    return [f"Under which licence: {silent}. Ask the authors before you pass these files on."]


def _assumed(release: Release) -> list[str]:
    """The tasks whose base model nobody stated."""
    return [one.task for one in release.adapters if one.stated.get("base", "").endswith(ASSUMED)]


def _unbased(release: Release) -> list[str]:
    silent = ", ".join(_assumed(release))
    if not silent:
        return []
    return [f"On which base model: {silent}. Only the shapes were compared with the backbone."]


def _tasks(release: Release) -> str:
    names = [adapter.task for adapter in release.adapters]
    return " and ".join([", ".join(names[:-1])] * (len(names) > 1) + names[-1:])


def _backbone(release: Release) -> str:
    stated = release.entry["backbone"]
    if "repo" in stated:
        at = f", revision `{stated['revision']}`" if "revision" in stated else ""
        return f"The backbone is [{stated['repo']}](https://huggingface.co/{stated['repo']}){at}."
    if "packaged" in stated:
        return "The backbone is the small one that comes with dmp."
    return "The backbone, a Stable Diffusion in a folder in diffusers' layout, is not on the Hub."


def _table(release: Release) -> str:
    rows = [["task", "file", "rank", "licence", "sha256", "from"]]
    rows += [["---"] * len(rows[0])]
    rows += [
        [
            adapter.task,
            f"`{adapter.file}`",
            adapter.rank,
            adapter.license or NOT_STATED,
            f"`{adapter.sha256}`",
            _origin(adapter),
        ]
        for adapter in release.adapters
    ]
    return "\n".join(f"| {' | '.join(map(_plain, row))} |" for row in rows)


def _origin(adapter: Adapter) -> str:
    """Where a file came from, as its header has it."""
    stated = adapter.stated
    if "source" in stated:
        digest = f", sha256 {stated['source_sha256']}" if "source_sha256" in stated else ""
        return f"converted from {stated['source']}{digest}"
    if "training" in stated:
        on = f" on {stated['data']}" if "data" in stated else ""
        return f"trained with dmp{on}"
    return NOT_STATED


def _plain(value: str) -> str:
    """Text of others in a line of Markdown: no markup of its own, no second line."""
    line = " ".join(value.split())
    return re.sub(r"([|<>\[\]*])", r"\\\1", line)


def _command(release: Release, name: str) -> str:
    tasks = ",".join(adapter.task for adapter in release.adapters)
    return f"dmp predict {tasks} photos -o maps --weights {name}.toml --model {release.model}"


def _snippet(release: Release) -> str:
    stated = release.entry["backbone"]
    where = [json.dumps(stated.get("repo", BACKBONE_FOLDER)), 'subfolder="unet"']
    where += [f"revision={json.dumps(stated['revision'])}"] if "revision" in stated else []
    lines = [
        "from diffusers import UNet2DConditionModel",
        "",
        "unet = UNet2DConditionModel.from_pretrained(",
        f"    {', '.join(where)}",
        ")",
    ]
    for adapter in release.adapters:
        folder, file = adapter.file.split("/")
        prefix = json.dumps(adapter.prefix) if adapter.prefix else None
        lines += [
            "unet.load_lora_adapter(",
            f'    "{release.repo}", revision={json.dumps(release.branch)}, subfolder="{folder}",',
            f'    weight_name="{file}", prefix={prefix}, adapter_name="{adapter.task}",',
            ")",
        ]
    lines += [f'unet.set_adapters("{release.adapters[0].task}")']
    return "\n".join(lines)


def _settings(adapter: Adapter) -> str:
    """The settings of a task as a line of a list."""
    recipe, task = adapter.recipe, TASKS[adapter.task]
    also = f", {recipe.scale:g} metres per unit" if task.metres else ""
    also += ", bright is near" if task.metres and recipe.bright == "near" else ""
    also += f", axes {recipe.normals}" if task.unit_length else ""
    return f"- {adapter.task}: `{recipe.settings}`{also}"
