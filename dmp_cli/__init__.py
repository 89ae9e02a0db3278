"""dmp: dense maps of many images from one diffusion backbone and one small LoRA per task."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["DmpError", "Predictor", "__version__"]

if TYPE_CHECKING:
    from dmp_cli.errors import DmpError
    from dmp_cli.predict import Predictor


def __getattr__(name: str) -> Any:
    """Import the public names when they are first asked for: `import dmp_cli` loads no torch."""
    if name == "Predictor":
        from dmp_cli.predict import Predictor

        return Predictor
    if name == "DmpError":
        from dmp_cli.errors import DmpError

        return DmpError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
