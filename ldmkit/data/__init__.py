"""Data: the sample contract, the sources that come with ldmkit, and how samples become batches."""

from ldmkit.data.batches import batches
from ldmkit.data.dataset import Dataset
from ldmkit.data.examples import slot_fields
from ldmkit.data.jitter import Jitter
from ldmkit.data.order import Order, ShuffledOrder
from ldmkit.data.sample import Info, MissingFieldError, Problem, Sample
from ldmkit.data.source import Judge, Shards, Source, ViewOptions
from ldmkit.fields import NO_FIELDS, Field, Fields
from ldmkit.images.files import BadSampleError

__all__ = [
    "NO_FIELDS",
    "BadSampleError",
    "Dataset",
    "Field",
    "Fields",
    "Info",
    "Jitter",
    "Judge",
    "MissingFieldError",
    "Order",
    "Problem",
    "Sample",
    "Shards",
    "ShuffledOrder",
    "Source",
    "ViewOptions",
    "batches",
    "slot_fields",
]
