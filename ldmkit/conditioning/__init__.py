"""The seam: a conditioning modality is a plugin that implements `Conditioner`; `ConditionerSet` does what is the same for all."""

from ldmkit.conditioning import widgets
from ldmkit.conditioning.conditioner import RESERVED, Conditioner, as_tensor, fitted
from ldmkit.conditioning.conditioner_set import ConditionerSet
from ldmkit.conditioning.dropout import Dropout, DroppedSlots, KeptSlots
from ldmkit.conditioning.stored_null import StoredNull
from ldmkit.conditioning.types import (
    Batch,
    Canvas,
    Conditioning,
    ForeignStage,
    LatentSpec,
    Ports,
    Tensors,
    concatenate,
    pad_stack,
)
from ldmkit.conditioning.user_inputs import Values

__all__ = [
    "RESERVED",
    "Batch",
    "Canvas",
    "Conditioner",
    "ConditionerSet",
    "Conditioning",
    "Dropout",
    "DroppedSlots",
    "ForeignStage",
    "KeptSlots",
    "LatentSpec",
    "Ports",
    "StoredNull",
    "Tensors",
    "Values",
    "as_tensor",
    "concatenate",
    "fitted",
    "pad_stack",
    "widgets",
]
