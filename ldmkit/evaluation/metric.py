"""What a metric is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from ldmkit.evaluation.context import Evaluation
    from ldmkit.evaluation.results import Figure


class Metric(ABC):
    """Measures a trained model; registered by name through `ldmkit_register_metrics`.

    The constructor is the schema: its keyword-only, annotated parameters are the options of ``evaluate:`` in a recipe.

    ```python
    class Brightness(Metric):
        def __init__(self, *, scale: float = 1.0) -> None:
            self.scale = scale

        def compute(self, evaluation):
            own, real = (self.scale * float(x.mean()) for x in (evaluation.generated, evaluation.truth))
            return [evaluation.figure("brightness", own, beside={"held-out pictures": real})]
    ```
    """

    looks_at_samples: ClassVar[bool] = (
        True  # False: it asks model and data alone, so a sweep over sampling need not repeat it
    )

    @abstractmethod
    def compute(self, evaluation: Evaluation) -> list[Figure]:
        """The figures; an empty list where the metric does not apply to this model.

        What is costly (samples, reconstructions) is a cached property of `evaluation` and shared by all metrics.
        An `LdmkitError` is reported as the reason why there is no figure, and the other metrics go on.
        """
