"""The codebook: exact search, losses and averages against closed forms, and its repairs."""

import subprocess
import sys

import pytest
import torch

from ldmkit.autoencoder.codebook_search import by_product, by_tree, nearest_code, tree_wins
from ldmkit.autoencoder.quantizer import Quantizer
from ldmkit.errors import DivergedError, UsageError


def distances(vectors, codes):
    return (vectors.double().unsqueeze(1) - codes.double().unsqueeze(0)).square().sum(-1)


def brute(vectors, codes):
    return distances(vectors, codes).argmin(1)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 8, 12])
@pytest.mark.parametrize("count", [1, 7, 300, 2048])
def test_nearest_code_is_exact(width, count):
    generator = torch.Generator().manual_seed(width)
    vectors, codes = torch.randn(500, width, generator=generator), torch.randn(count, width, generator=generator)
    torch.testing.assert_close(by_tree(vectors, codes), brute(vectors, codes))
    for found in (nearest_code(vectors, codes), by_product(vectors, codes, 1000)):
        assert found.dtype == torch.int64
        # Where a product errs, the code it took is as near up to rounding.
        excess = distances(vectors, codes).gather(1, found[:, None])[:, 0] - distances(vectors, codes).min(1).values
        assert float(excess.max()) < 1e-5


def test_search_takes_the_faster_way():
    assert tree_wins(8192, 3)
    assert tree_wins(16384, 8)
    assert not tree_wins(64, 3)
    assert not tree_wins(16384, 16)


def test_search_of_nothing_and_of_broken_vectors():
    assert nearest_code(torch.empty(0, 3), torch.randn(5, 3)).shape == (0,)
    with pytest.raises(DivergedError, match="not finite"):
        nearest_code(torch.full((4, 3), torch.nan), torch.randn(300, 3))


def test_codebook_starts_uniform():
    weight = Quantizer(64, 3).embedding.weight.detach()
    assert weight.abs().max() <= 1 / 64
    assert weight.std() == pytest.approx(1 / 64 / 3**0.5, rel=0.2)


@pytest.mark.parametrize("swapped", [False, True])
def test_loss_and_gradients_follow_equation_3(swapped):
    torch.manual_seed(0)
    quantizer = Quantizer(5, 2, commitment=0.25, swapped=swapped).double()
    latents = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    found = quantizer(latents)
    codes = quantizer.lookup(found.indices).detach()
    torch.testing.assert_close(found.latents, codes)
    gap = (codes - latents.detach()).square().mean()
    torch.testing.assert_close(found.terms["codebook"].detach(), 1.25 * gap)
    found.terms["codebook"].backward()
    # The commitment term moves latents with weight 0.25 and the codebook term codes with 1, or the other way round.
    to_codes, to_latents = (1.0, 0.25) if swapped else (0.25, 1.0)
    torch.testing.assert_close(latents.grad, to_codes * 2 * (latents.detach() - codes) / latents.numel())
    pull = torch.zeros_like(quantizer.embedding.weight)
    rows = (codes - latents.detach()).movedim(1, -1).reshape(-1, 2)
    pull.index_add_(0, found.indices.flatten(), to_latents * 2 * rows / latents.numel())
    torch.testing.assert_close(quantizer.embedding.weight.grad, pull)


def test_straight_through():
    latents = torch.randn(1, 2, 2, 2, requires_grad=True)
    weights = torch.randn(1, 2, 2, 2)
    (Quantizer(4, 2)(latents).latents * weights).sum().backward()
    torch.testing.assert_close(latents.grad, weights)


def test_perplexity_and_usage():
    quantizer = Quantizer(4, 1)
    with torch.no_grad():
        quantizer.embedding.weight.copy_(torch.tensor([[0.0], [10.0], [20.0], [30.0]]))
    terms = quantizer(torch.tensor([0.0, 0.0, 10.0, 20.0]).view(1, 1, 2, 2)).terms
    assert float(terms["usage"]) == 0.75
    assert float(terms["perplexity"]) == pytest.approx(2**1.5)  # entropy of (1/2, 1/4, 1/4) is 1.5 bits


def test_running_averages():
    """Two steps of eq. 6 to 8 of arXiv 1711.00937 by hand."""
    quantizer = Quantizer(3, 1, ema=0.9, commitment=0.5)
    with torch.no_grad():
        for tensor in (quantizer.embedding.weight, quantizer.total):
            tensor.copy_(torch.tensor([[0.0], [10.0], [-10.0]]))
    latents = torch.tensor([1.0, 2.0, 9.0, 1.0]).view(1, 1, 2, 2)
    terms = quantizer(latents).terms
    assert float(terms["codebook"]) == pytest.approx(0.5 * (1 + 4 + 1 + 1) / 4)
    count, total = [0.9 + 0.1 * 3, 0.9 + 0.1, 0.9], [0.1 * 4, 9.0 + 0.9, -9.0]
    expected = [t / c for t, c in zip(total, count, strict=True)]
    assert quantizer.embedding.weight.flatten().tolist() == pytest.approx(expected)
    quantizer(latents)
    assert quantizer.embedding.weight[0].item() == pytest.approx((0.9 * 0.4 + 0.4) / (0.9 * 1.2 + 0.3))
    assert quantizer.embedding.weight[2].item() == pytest.approx(-10)
    assert not quantizer.embedding.weight.requires_grad
    before = quantizer.embedding.weight.clone()
    quantizer.eval()(latents)
    torch.testing.assert_close(quantizer.embedding.weight, before, rtol=0, atol=0)


def test_unused_codes_keep_their_place_for_ever():
    quantizer = Quantizer(2, 1, ema=0.5)
    with torch.no_grad():
        quantizer.embedding.weight.copy_(torch.tensor([[0.0], [7.0]]))
        quantizer.total.copy_(quantizer.embedding.weight)
    for _ in range(200):
        quantizer(torch.zeros(1, 1, 2, 2))
    assert quantizer.embedding.weight[1].item() == pytest.approx(7.0)


@pytest.mark.parametrize("ema", [None, 0.9])
def test_dead_codes_move_onto_latents(ema):
    quantizer = Quantizer(4, 2, revive=3, ema=ema)
    with torch.no_grad():
        quantizer.embedding.weight.copy_(torch.tensor([[0.0, 0.0], [50.0, 50.0], [60.0, 60.0], [70.0, 70.0]]))
    if ema is not None:
        quantizer.total.copy_(quantizer.embedding.weight)
    latents = torch.randn(2, 2, 4, 4)
    moved = [float(quantizer(latents).terms["revived"]) for _ in range(3)]
    assert moved == [0, 0, 3]
    rows = latents.movedim(1, -1).reshape(-1, 2)
    for code in quantizer.embedding.weight[1:].detach():
        assert (rows == code).all(dim=1).any()
    assert quantizer(latents).terms["perplexity"] > 1.5
    assert float(quantizer.eval()(latents).terms.get("revived", 0)) == 0


def test_revival_is_the_same_in_every_run():
    def revived():
        torch.manual_seed(0)
        quantizer = Quantizer(50, 2, revive=1)
        latents = torch.randn(1, 2, 5, 5)
        torch.manual_seed(torch.seed())
        quantizer(latents)
        return quantizer.embedding.weight.detach()

    torch.testing.assert_close(revived(), revived(), rtol=0, atol=0)


def test_a_plain_codebook_can_go_on_with_averages_and_revival():
    plain, upkept = Quantizer(4, 2), Quantizer(4, 2, ema=0.9, revive=5)
    upkept(torch.randn(1, 2, 2, 2))
    upkept.load_state_dict(plain.state_dict())
    torch.testing.assert_close(upkept.total, plain.embedding.weight.detach())
    assert upkept.count.tolist() == [1, 1, 1, 1]
    assert upkept.idle.tolist() == [0, 0, 0, 0]


RANK = """
import sys, torch
from torch import distributed as dist
from ldmkit.autoencoder.quantizer import Quantizer
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
torch.manual_seed(0)
quantizer = Quantizer(16, 2, ema=0.9, revive=2)
for step in range(3):
    quantizer(torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(10 * step + rank)))
torch.save({**quantizer.state_dict()}, f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_codebooks_stay_equal_on_all_ranks(tmp_path):
    """Each rank sees other latents; averages and revived codes come from all of them."""
    ranks = [subprocess.Popen([sys.executable, "-c", RANK, str(rank), str(tmp_path)]) for rank in range(2)]
    assert [process.wait(timeout=300) for process in ranks] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"codes": 0}, "at least 1"),
        ({"commitment": -1}, "negative"),
        ({"ema": 1.0}, "between 0 and 1"),
        ({"ema": 0.9, "swapped": True}, "no meaning"),
        ({"revive": 0}, "steps from 1"),
    ],
)
def test_impossible_options(options, words):
    with pytest.raises(UsageError, match=words):
        Quantizer(**{"codes": 4, "width": 2, **options})
