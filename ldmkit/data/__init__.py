"""Data: the sample contract, the sources that come with ldmkit, and how samples become batches."""

from ldmkit.data.dataset import Dataset
from ldmkit.data.loading import batches, slot_fields
from ldmkit.data.order import Order
from ldmkit.data.sample import BadSampleError, Field, Info, MissingFieldError, Problem, Sample
from ldmkit.data.source import Judge, Source, ViewOptions

__all__ = [
    "BadSampleError",
    "Dataset",
    "Field",
    "Info",
    "Judge",
    "MissingFieldError",
    "Order",
    "Problem",
    "Sample",
    "Source",
    "ViewOptions",
    "batches",
    "slot_fields",
]
