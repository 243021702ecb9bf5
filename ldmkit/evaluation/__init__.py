"""What a trained model is worth: metrics beside their baselines, sheets of pictures, and the report.

The names load on first use, so that reading results and writing a report need no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldmkit.evaluation.context import Evaluation
    from ldmkit.evaluation.images import Example, contact_sheet, sheet
    from ldmkit.evaluation.measure import evaluate
    from ldmkit.evaluation.metric import Metric
    from ldmkit.evaluation.pictures import write_pictures
    from ldmkit.evaluation.report import write_report
    from ldmkit.evaluation.results import Figure, Picture, Results
    from ldmkit.evaluation.store import combined, kept, new_folder
    from ldmkit.evaluation.verdicts import conclusion

_HOMES = {
    "Evaluation": "context",
    "Example": "images",
    "Figure": "results",
    "Metric": "metric",
    "Picture": "results",
    "Results": "results",
    "combined": "store",
    "conclusion": "verdicts",
    "contact_sheet": "images",
    "evaluate": "measure",
    "kept": "store",
    "new_folder": "store",
    "sheet": "images",
    "write_pictures": "pictures",
    "write_report": "report",
}

__all__ = [
    "Evaluation",
    "Example",
    "Figure",
    "Metric",
    "Picture",
    "Results",
    "combined",
    "conclusion",
    "contact_sheet",
    "evaluate",
    "kept",
    "new_folder",
    "sheet",
    "write_pictures",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
