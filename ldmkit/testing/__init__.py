"""The contract kit for plugin authors.

```python
from ldmkit.testing import check_conditioner

def test_contract():
    check_conditioner(Depth(features=4), {"depth": torch.rand(1, 64, 64)}, others=[{"depth": torch.zeros(1, 64, 64)}])
```

Or as a pytest fixture: `pytest_plugins = ["ldmkit.testing.fixtures"]` in a conftest, and `check_conditioner` as an argument of
a test. A denoiser's contract is `check_denoiser(MyDenoiser, {"width": 32})`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldmkit.testing.contract import check_conditioner
    from ldmkit.testing.denoiser import check_denoiser
    from ldmkit.testing.subject import LATENT, ContractError

__all__ = ["LATENT", "ContractError", "check_conditioner", "check_denoiser"]


def __getattr__(name: str) -> Any:
    # Imported when first used, so that the fixture's module can be loaded at every start of pytest without torch.
    if name == "check_conditioner":
        from ldmkit.testing.contract import check_conditioner

        return check_conditioner
    if name == "check_denoiser":
        from ldmkit.testing.denoiser import check_denoiser

        return check_denoiser
    if name in __all__:
        from ldmkit.testing import subject

        return getattr(subject, name)
    raise AttributeError(f"module 'ldmkit.testing' has no attribute {name!r}")
