"""What a metric is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal

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

    # What it looks at besides the data. A sweep over the sampling repeats those that look at samples; an autoencoder that was
    # trained alone has those that ask nothing more.
    asks: ClassVar[Literal["samples", "model", "autoencoder"]] = "samples"

    @abstractmethod
    def compute(self, evaluation: Evaluation) -> list[Figure]:
        """The figures; an empty list where the metric does not apply to this model.

        What is costly (samples, reconstructions) is a cached property of `evaluation` and shared by all metrics.
        An `LdmkitError` is reported as the reason why there is no figure, and the other metrics go on.
        """
