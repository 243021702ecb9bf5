"""Models from elsewhere, and for elsewhere: checkpoints of the paper's code, folders of diffusers.

    model = load_compvis("model.ckpt", "config.yaml")          # nothing in the file is executed
    model = load_diffusers("stable-diffusion-v1-5")
    save_diffusers(model, "folder")                            # what diffusers cannot represent is refused with the reason

`reading` and `unpickling` read files nobody vouches for, `report` says which key went where, `compvis*` and `diffusers*` know
the two formats, `foreign` asks the registered conditioners whose a conditioning stage is.
"""

from ldmkit.interop.compvis.load import (
    import_compvis,
    import_compvis_autoencoder,
    load_compvis,
    load_compvis_autoencoder,
)
from ldmkit.interop.compvis.reader import Imported
from ldmkit.interop.diffusers.load import import_diffusers, load_diffusers
from ldmkit.interop.diffusers.save import save_diffusers
from ldmkit.interop.report import KeyReport

__all__ = [
    "Imported",
    "KeyReport",
    "import_compvis",
    "import_compvis_autoencoder",
    "import_diffusers",
    "load_compvis",
    "load_compvis_autoencoder",
    "load_diffusers",
    "save_diffusers",
]
