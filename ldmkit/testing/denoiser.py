"""`check_denoiser`: the contract of a denoiser, as a test."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ldmkit.conditioning import LatentSpec, Ports
from ldmkit.denoiser import Denoiser
from ldmkit.errors import PluginError
from ldmkit.plugins.options import fill, model
from ldmkit.testing.subject import LATENT, ContractError, global_seed, said

PORTS = (
    Ports(),
    Ports(tokens=6, length=3),
    Ports(vector=5),
    Ports(concat=2),
    Ports(tokens=6, vector=5, concat=2, length=3),
)
ROWS = 2
# Float64 sums taken in another order: a batch of one and a batch of two run other kernels.
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Inputs:
    """What a denoiser is called with."""

    x: Tensor
    t: Tensor
    tokens: Tensor | None = None
    mask: Tensor | None = None
    vector: Tensor | None = None
    concat: Tensor | None = None

    def row(self, index: int) -> Inputs:
        return Inputs(*(None if v is None else v[index : index + 1] for v in vars(self).values()))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Subject:
    """A denoiser of one set of ports, in float64 and with weights drawn such that nothing of it is silent.

    Called, it returns the output (b, c, h, w), of the shape of x.
    """

    network: Denoiser
    latent: LatentSpec
    ports: Ports
    grids: Sequence[tuple[int, int]]
    make: Callable[[], Denoiser]

    def fail(self, what: str, hint: str) -> ContractError:
        fed = {port: width for port, width in vars(self.ports).items() if width}
        return ContractError(f"{type(self.network).__name__} with {fed or 'no ports'}: {what}\n  {hint}")

    def inputs(self, grid: tuple[int, int]) -> Inputs:
        generator = torch.Generator().manual_seed(grid[0] + 31 * grid[1])

        def drawn(*shape: int) -> Tensor:
            return torch.randn(ROWS, *shape, generator=generator, dtype=torch.float64)

        sides = tuple(side * self.network.reduction for side in grid)
        tokens, mask = None, None
        if self.ports.tokens:
            tokens = drawn(self.ports.length, self.ports.tokens)
            mask = torch.ones(ROWS, self.ports.length, dtype=torch.bool)
            mask[0, -1] = False
        return Inputs(
            drawn(self.latent.channels, *sides),
            torch.tensor([3.0, 700.5], dtype=torch.float64),
            tokens,
            mask,
            drawn(self.network.vector_width) if self.ports.vector else None,
            drawn(self.ports.concat, *sides) if self.ports.concat else None,
        )

    def __call__(self, given: Inputs, network: Denoiser | None = None) -> Tensor:
        called = network or self.network
        try:
            output: Any = called(
                given.x, given.t, tokens=given.tokens, mask=given.mask, vector=given.vector, concat=given.concat
            )
        except Exception as error:
            raise self.fail(
                f"forward fails for x {tuple(given.x.shape)}: {said(error)}", "see Denoiser.forward"
            ) from error
        if not isinstance(output, Tensor) or output.shape != given.x.shape:
            got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise self.fail(f"forward gave {got} for x {tuple(given.x.shape)}", "return (b, c, h, w), as x is")
        return output


def check_denoiser(
    kind: type[Denoiser],
    options: Mapping[str, Any] | None = None,
    *,
    latent: LatentSpec = LATENT,
    grids: Sequence[tuple[int, int]] = ((4, 4), (2, 6)),
) -> None:
    """Raises `ContractError` naming the first thing that denoisers of this class do wrong and what to write instead.

    Args:
        kind: the class, made with `options`, `latent` and several `ports`: none, tokens, vector, concat, and all of them.
        options: of its constructor.
        grids: (h, w) of latents, in units of its `reduction`.

    What is checked: options; shapes and dtype; that every input matters and masked tokens do not; that no row depends on its
    batch; determinism; gradients; `blocks()` and `layer(name)`; checkpointing; weights saved and loaded; meta builds.
    """
    if not (isinstance(kind, type) and issubclass(kind, Denoiser)):
        raise ContractError(f"{kind!r} is no subclass of ldmkit.Denoiser")
    try:
        arguments = model(kind).read(options or {}).arguments()
    except (PluginError, ValueError) as error:
        raise ContractError(f"{kind.__name__}: its options: {said(error)}") from error
    with global_seed(0):
        for ports in PORTS:
            made = _maker(kind, arguments, latent, ports)
            subject = Subject(_stirred(made()), latent, ports, grids, made)
            for check in CHECKS:
                check(subject)


def _maker(
    kind: type[Denoiser], arguments: Mapping[str, Any], latent: LatentSpec, ports: Ports
) -> Callable[[], Denoiser]:
    def made() -> Denoiser:
        try:
            return kind(**arguments, **fill(kind, LatentSpec=latent, Ports=ports))
        except Exception as error:
            raise ContractError(f"{kind.__name__} cannot be made with {ports}: {said(error)}") from error

    return made


def _stirred(network: Denoiser) -> Denoiser:
    """Fresh networks end in zeros, behind which nothing shows."""
    network = network.double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return network


def check_attributes(subject: Subject) -> None:
    for name in ("reduction", "vector_width"):
        value = getattr(subject.network, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise subject.fail(f"{name} is {value!r}", "set it in __init__: a whole number from 1 up")


def check_shapes(subject: Subject) -> None:
    for grid in subject.grids:
        output = subject(subject.inputs(grid))
        if output.dtype != torch.float64:
            raise subject.fail(f"float64 latents gave {output.dtype}", "compute in the dtype of x")
        if not bool(torch.isfinite(output).all()):
            raise subject.fail("the prediction is not finite", "look for divisions and logarithms")


@torch.no_grad()
def check_inputs_matter(subject: Subject) -> None:
    given = subject.inputs(subject.grids[0])
    before = subject(given)
    changes: dict[str, Inputs] = {"x": replace(given, x=given.x + 1.0), "t": replace(given, t=given.t + 100.0)}
    for name in ("tokens", "vector", "concat"):
        if (value := getattr(given, name)) is not None:
            changes[name] = replace(given, **{name: -2.0 * value})
    for name, changed in changes.items():
        if torch.equal(subject(changed), before):
            raise subject.fail(f"{name} changes nothing", f"read `{name}` in forward, or its condition is lost")
    if given.tokens is not None and given.mask is not None:
        hidden = torch.where(given.mask[..., None], given.tokens, given.tokens + 50.0)
        if not torch.allclose(subject(replace(given, tokens=hidden)), before, rtol=TOLERANCE, atol=TOLERANCE):
            raise subject.fail("a masked token changes the prediction", "True in `mask` is attended to, False is not")


@torch.no_grad()
def check_deterministic(subject: Subject) -> None:
    given = subject.inputs(subject.grids[0])
    before = torch.random.get_rng_state()
    first, second = subject(given), subject(given)
    if not torch.equal(first, second):
        raise subject.fail("two calls in eval mode differ", "draw nothing in forward but nn.Dropout's")
    if not torch.equal(before, torch.random.get_rng_state()):
        raise subject.fail(
            "forward in eval mode moves the global generator", "draw nothing in forward but nn.Dropout's"
        )


@torch.no_grad()
def check_rows(subject: Subject) -> None:
    given = subject.inputs(subject.grids[-1])
    together = subject(given)
    for index in range(ROWS):
        alone = subject(given.row(index))
        if not torch.allclose(alone[0], together[index], rtol=TOLERANCE, atol=TOLERANCE):
            raise subject.fail(f"row {index} depends on its batch", "no batch norm, and no mean over the batch")


def check_gradients(subject: Subject) -> None:
    subject.network.zero_grad()
    subject(subject.inputs(subject.grids[0])).square().mean().backward()  # type: ignore[no-untyped-call]
    silent = [
        n for n, p in subject.network.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    if silent:
        raise subject.fail(
            f"no gradient reaches {silent[0]}{f' and {len(silent) - 1} more' if len(silent) > 1 else ''}",
            "several processes train only what takes part in every step: leave out what the ports do not need",
        )


@torch.no_grad()
def check_blocks(subject: Subject) -> None:
    blocks = list(subject.network.blocks())
    names = {id(module): name for name, module in subject.network.named_modules()}
    if not blocks or any(id(block) not in names for block in blocks) or len({id(b) for b in blocks}) != len(blocks):
        raise subject.fail(
            "blocks() is empty or names what is no submodule, or one twice", "return its repeated blocks"
        )
    ran: list[int] = []
    outputs: list[Any] = []

    def seen(index: int, module: nn.Module, arguments: object, output: object) -> None:
        ran.append(index)
        outputs.append(output)

    hooks = [block.register_forward_hook(partial(seen, index)) for index, block in enumerate(blocks)]
    try:
        subject(subject.inputs(subject.grids[0]))
    finally:
        for hook in hooks:
            hook.remove()
    if ran != sorted(set(ran)) or len(ran) != len(blocks):
        raise subject.fail(
            f"blocks() run in the order {ran}", "list each block once, in the order in which they are called"
        )
    for block, output in zip(blocks, outputs, strict=True):
        if subject.network.layer(names[id(block)]) is not block:
            raise subject.fail(f"layer('{names[id(block)]}') is another module", "leave `layer` to the base class")
        if not isinstance(output, Tensor) or output.ndim not in (3, 4) or output.shape[0] != ROWS:
            got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise subject.fail(f"the block {names[id(block)]} gives {got}", "a block gives (b, c, h, w) or (b, n, c)")


def check_checkpointing(subject: Subject) -> None:
    given = subject.inputs(subject.grids[0])
    found = []
    for on in (False, True):
        subject.network.checkpointing = on
        subject.network.zero_grad()
        subject(given).square().mean().backward()  # type: ignore[no-untyped-call]
        found.append([p.grad for p in subject.network.parameters() if p.grad is not None])
    subject.network.checkpointing = False
    same = len(found[0]) == len(found[1]) and all(
        torch.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE) for a, b in zip(*found, strict=False)
    )
    if not same:
        raise subject.fail(
            "`checkpointing` changes the gradient", "compute again what was computed, with use_reentrant=False"
        )


@torch.no_grad()
def check_persistence(subject: Subject) -> None:
    given = subject.inputs(subject.grids[0])
    again = subject.make().double().eval()
    again.load_state_dict(subject.network.state_dict())
    if not torch.equal(subject(given, again), subject(given)):
        raise subject.fail("the same weights predict otherwise", "what is drawn in __init__ is a parameter or a buffer")
    with torch.device("meta"):
        hollow: nn.Module = subject.make()
    if [n for n, p in hollow.named_parameters() if not p.is_meta]:
        raise subject.fail("it cannot be built on meta", "no .to(device) and no numbers read in __init__")


CHECKS: tuple[Callable[[Subject], None], ...] = (
    check_attributes,
    check_shapes,
    check_inputs_matter,
    check_deterministic,
    check_rows,
    check_gradients,
    check_blocks,
    check_checkpointing,
    check_persistence,
)
