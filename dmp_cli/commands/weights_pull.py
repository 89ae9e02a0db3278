"""`dmp weights pull`: a model's files onto this machine."""

import re
from collections.abc import Sequence

from dmp_cli.commands import fetch
from dmp_cli.commands import options as opt
from dmp_cli.commands import weights_options as own
from dmp_cli.commands.report import Talk
from dmp_cli.inventory import BACKBONE, Part, stated


def pull(
    model: own.Model = None,
    task: own.Task = None,
    tiny_decoder: own.TinyDecoder = False,
    dtype: own.Dtype = "auto",
    weights: opt.Weights = None,
    quiet: opt.Quiet = False,
    progress: opt.Progress = True,
) -> None:
    """Fetch what a model needs, and check it; a branch is brought up to date.

    Prints where the backbone and the LoRAs lie. Without MODEL it is the one that a run takes.

    dmp weights pull dmp --task depth,normals
    """
    from dmp_cli import sources

    talk = Talk(quiet, progress=progress)
    chosen = own.choose(model, task, weights).of_run(tiny_decoder)
    half = own.half(dtype, chosen.backbone.source)
    asked = [part.source for part in chosen.parts if part.source and _asks(part, dtype)]
    if asked:
        fetch.bring(sources.Fetch.of(asked, half), talk)
    for part in chosen.parts:
        if part.source:
            sources.check(part.source, stated(part.source, part.name, half))
    _tell(chosen.model, chosen.parts, talk)
    if not asked:
        talk.note(f"model {chosen.model}: everything is here")
    for path in own.places(chosen, half):
        talk.output(str(path))


def _asks(part: Part, dtype: str) -> bool:
    """Whether a server has to be asked: for what is not here, or what may have moved there."""
    from dmp_cli.connection import offline
    from dmp_cli.sources import missing

    source = part.source
    if source is None or not source.repo:
        return False
    pinned = re.fullmatch("[0-9a-f]{40}", source.revision or "")
    other = part.name == BACKBONE and source.variant and dtype != "auto"  # fp16 beside fp32
    return bool(missing(source) or other or not (pinned or offline()))


def _tell(model: str, parts: Sequence[Part], talk: Talk) -> None:
    bare = [part.name for part in parts if not part.source]
    if bare:
        talk.note(f"model {model} names no source of {', '.join(bare)}: {own.IMPORT}")
    if any(part.source and part.source.made for part in parts):
        talk.note(f"model {model} is made by dmp on its first use")
