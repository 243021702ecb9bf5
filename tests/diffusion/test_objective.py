"""Predictions, weightings, timesteps and losses against closed forms."""

import math
from typing import Any

import pytest
import torch

from ldmkit import diffusion, schedules
from ldmkit.diffusion import Diffusion
from ldmkit.errors import UsageError
from ldmkit.random import generators, normal, uniform

PREDICTIONS = ("eps", "x0", "v", "flow")
SCHEDULES: tuple[dict[str, Any], ...] = (
    {"type": "linear"},
    {"type": "cosine"},
    {"type": "flow"},
    {"type": "edm"},
    {"type": "linear", "zero_snr": True},
)


def rows(name: str, count: int = 5) -> torch.Tensor:
    return normal(generators(0, name, range(count)), (2, 4, 4)).double()


def t_of(process: Diffusion, count: int = 5) -> torch.Tensor:
    return torch.linspace(0, process.schedule.timesteps - 2, count).round()


@pytest.mark.parametrize(
    ("prediction", "schedule"),
    [
        (prediction, schedule)
        for prediction in PREDICTIONS
        for schedule in SCHEDULES
        if not (prediction == "eps" and (schedule.get("zero_snr") or schedule["type"] == "flow"))
    ],
)
def test_the_right_answer_gives_back_what_went_in(prediction: Any, schedule: dict[str, Any]) -> None:
    process = diffusion.make(schedule=schedule, prediction=prediction)
    x0, noise, t = rows("x0"), rows("noise"), t_of(process)
    noisy, answer = process.noised(x0, noise, t), process.target(x0, noise, t)
    alpha, sigma = (part.double().view(-1, 1, 1, 1) for part in process.schedule.alpha_sigma(t))
    assert torch.allclose(noisy, alpha * x0 + sigma * noise, atol=1e-6)
    assert torch.allclose(process.to_x0(answer, noisy, t), x0, atol=1e-6)
    assert torch.allclose(process.to_eps(answer, noisy, t), noise, atol=1e-6)
    assert torch.allclose(process.to_v(answer, noisy, t), alpha * noise - sigma * x0, atol=1e-6)
    assert torch.allclose(process.to_flow(answer, noisy, t), noise - x0, atol=1e-6)
    assert torch.allclose(process.from_x0(x0, noisy, t), answer, atol=1e-6)


@pytest.mark.parametrize("first", PREDICTIONS)
@pytest.mark.parametrize("second", PREDICTIONS)
def test_any_answer_means_the_same_in_every_prediction(first: Any, second: Any) -> None:
    one, other = (diffusion.make(prediction=name) for name in (first, second))
    noisy, answer, t = rows("noisy"), rows("answer"), t_of(one)
    clean = one.to_x0(answer, noisy, t)
    translated = other.from_x0(clean, noisy, t)
    assert torch.allclose(other.to_x0(translated, noisy, t), clean, rtol=1e-9, atol=1e-9)
    assert torch.allclose(other.to_eps(translated, noisy, t), one.to_eps(answer, noisy, t), rtol=1e-6, atol=1e-7)
    denoised = one.denoiser(lambda x, _: answer)(noisy, t)
    assert torch.equal(denoised, clean)


@pytest.mark.parametrize("schedule", [{"type": "flow"}, {"type": "linear", "zero_snr": True}], ids=str)
def test_eps_needs_a_signal(schedule: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"diffusion\.prediction"):
        diffusion.make(schedule=schedule, prediction="eps")


@pytest.mark.parametrize("weighting", ["snr", "min-snr-gamma", "p2", "edm", "elbo"])
def test_a_weighting_means_the_same_for_every_prediction(weighting: str) -> None:
    """The weighted squared error of one x_0 does not depend on what the network happens to predict."""
    losses = []
    for prediction in PREDICTIONS:
        process = diffusion.make(prediction=prediction, weighting=weighting)
        x0, noise, t = rows("x0"), rows("noise"), t_of(process)
        answer = process.from_x0(rows("guess"), process.noised(x0, noise, t), t)
        losses.append(process.loss(answer, x0, noise, t).double())
    for loss in losses[1:]:
        assert torch.allclose(loss, losses[0], rtol=1e-4)


def test_weights_by_the_papers_formulas() -> None:
    schedule = schedules.linear()
    kept = schedule.alphas_cumprod
    snr = (kept / (1 - kept)).float()
    t = torch.arange(1000)

    def weights(prediction: Any, weighting: Any) -> torch.Tensor:
        return diffusion.make(prediction=prediction, weighting=weighting).weights(t)

    gamma = {"type": "min-snr-gamma", "gamma": 5.0}
    close = {"rtol": 1e-4, "atol": 1e-9}
    assert torch.allclose(weights("v", "simple"), torch.ones(1000))
    assert torch.allclose(weights("x0", "snr"), snr, **close)
    assert torch.allclose(weights("eps", "snr"), torch.ones(1000), **close)
    assert torch.allclose(weights("eps", gamma), (5 / snr).clamp(max=1), **close)
    assert torch.allclose(weights("x0", gamma), snr.clamp(max=5), **close)
    assert torch.allclose(weights("v", gamma), snr.clamp(max=5) / (snr + 1), **close)
    assert torch.allclose(weights("eps", {"type": "p2", "k": 1.0, "gamma": 0.5}), (1 + snr) ** -0.5, **close)
    # EDM: lambda c_out^2 = 1, so that v, its network's own target, has weight 1
    assert torch.allclose(weights("v", "edm"), torch.ones(1000), **close)
    # Ho et al. 2020, eq. 12, with the released code's first entry
    beta = schedule.betas
    before = torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]])
    posterior = beta * (1 - before) / (1 - kept)
    bound = beta**2 / (2 * posterior * (1 - beta) * (1 - kept))
    bound[0] = bound[1]
    assert torch.allclose(weights("eps", "elbo"), bound.float(), **close)


def test_losses_by_hand() -> None:
    x0, noise, t = rows("x0"), rows("noise"), torch.tensor([3.0, 9.0, 200.0, 700.0, 999.0])
    answer = noise + 2.0
    expected = {"l2": 4.0, "l1": 2.0, "huber": 1.5}
    for name, value in expected.items():
        assert diffusion.make(loss=name).loss(answer, x0, noise, t).tolist() == pytest.approx([value] * 5, rel=1e-5)
    small = diffusion.make(loss={"type": "huber", "delta": 0.5}).loss(answer, x0, noise, t)
    assert small.tolist() == pytest.approx([0.5 * (2 - 0.25)] * 5, rel=1e-5)


def test_learned_log_variance_and_bound() -> None:
    x0, noise, t = rows("x0"), rows("noise"), torch.tensor([3.0, 9.0, 200.0, 700.0, 999.0])
    process = diffusion.make(learn_logvar=True, logvar=0.5, elbo=0.1)
    assert process.logvar is not None
    with torch.no_grad():
        process.logvar[200] = -1.0
    terms = process.terms(noise + 2.0, x0, noise, t)
    bound = diffusion.make(weighting="elbo").weights(t)
    logvar = torch.tensor([0.5, 0.5, -1.0, 0.5, 0.5])
    assert torch.allclose(terms["loss"], 4 / logvar.exp() + logvar + 0.1 * 4 * bound, rtol=1e-5)
    assert torch.allclose(terms["elbo"], 4 * bound, rtol=1e-5)
    terms["loss"].sum().backward()
    assert process.logvar.grad is not None
    assert process.logvar.grad.nonzero().flatten().tolist() == [3, 9, 200, 700, 999]
    # at its optimum the log-variance is the log of the loss
    assert float(1 - 4 / math.exp(math.log(4))) == 0


def draws(count: int) -> torch.Tensor:
    return uniform(generators(7, "timestep", range(count)))


def test_uniform_timesteps() -> None:
    process = diffusion.make(schedule={"type": "linear", "timesteps": 4})
    edges = torch.tensor([0.0, 0.24, 0.26, 0.999999])
    assert process.sample_timesteps(edges).tolist() == [0, 0, 1, 3]
    flow = diffusion.make(schedule={"type": "flow"}, prediction="flow")
    assert flow.sample_timesteps(torch.tensor([0.0, 0.5])).tolist() == [0, 499.5]


def test_stratified_timesteps_fill_every_batch_evenly() -> None:
    process = diffusion.make(timestep_sampling="stratified")
    u = draws(1024)
    for batch in (4, 32, 256):
        for start in range(0, 1024, batch):
            positions = torch.arange(start, start + batch)
            t = process.sample_timesteps(u[positions], positions)
            cells = (t * batch / 1000 + 1e-9).floor().long()
            assert torch.bincount(cells, minlength=batch).max() <= 2  # whole timesteps straddle a cell's edge
            assert abs(float(t.mean()) - 499.5) < 500 / batch + 1
    t = process.sample_timesteps(u, torch.arange(1024))
    alone = torch.cat([process.sample_timesteps(u[i : i + 1], torch.tensor([i])) for i in range(1024)])
    assert torch.equal(t, alone)


@pytest.mark.parametrize("name", ["uniform", "stratified", "logit-normal", "log-normal"])
def test_without_positions_the_uniforms_are_shares_of_the_distribution(name: str) -> None:
    """Evenly spread shares, cut into batches of any size: what training draws in the long run, and no draw of strata on top."""
    process = diffusion.make(timestep_sampling=name)
    shares = (torch.randperm(300, generator=torch.Generator().manual_seed(0)) + 0.5) / 300
    whole = process.sample_timesteps(shares)
    assert torch.equal(whole, torch.cat([process.sample_timesteps(part) for part in shares.split(7)]))
    positions = torch.arange(2**14)
    drawn = process.sample_timesteps(uniform(generators(1, "timestep", positions.tolist())), positions)
    gap = whole.sort().values - torch.quantile(drawn, (torch.arange(300) + 0.5) / 300)
    assert float(gap.abs().mean()) < 5


def test_logit_normal_timesteps() -> None:
    process = diffusion.make(
        schedule={"type": "flow"},
        prediction="flow",
        timestep_sampling={"type": "logit-normal", "mean": 0.5, "std": 1.2},
    )
    u = (torch.arange(4000) + 0.5) / 4000
    logits = torch.logit(process.sample_timesteps(u).double() / 999)
    assert float(logits.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(logits.std()) == pytest.approx(1.2, abs=0.02)
    extremes = process.sample_timesteps(torch.tensor([0.0, 0.99999994]))
    assert bool(((extremes >= 0) & (extremes < 1000)).all())


def test_log_normal_timesteps() -> None:
    process = diffusion.make(schedule={"type": "edm"}, prediction="v", timestep_sampling="log-normal")
    u = (torch.arange(4000) + 0.5) / 4000
    sigma = -process.schedule.log_snr(process.sample_timesteps(u)) / 2
    assert float(sigma.mean()) == pytest.approx(
        math.log(2) - 1.2, abs=0.01
    )  # the paper's -1.2 is for data of deviation 0.5
    assert float(sigma.std()) == pytest.approx(1.2, abs=0.02)
    whole = diffusion.make(timestep_sampling="log-normal").sample_timesteps(u)
    assert torch.equal(whole, whole.round())


def test_edm_training_is_the_papers_figure_for_figure() -> None:
    """Karras et al. 2022, table 1, by `sigma_data: 0.5` alone: P_mean, P_std, and lambda c_out^2 = 1 for v."""
    paper = diffusion.make(
        schedule={"type": "edm", "sigma_data": 0.5}, prediction="v", weighting="edm", timestep_sampling="log-normal"
    )
    u = (torch.arange(4000) + 0.5) / 4000
    t = paper.sample_timesteps(u)
    sigma = 0.5 * torch.exp(-paper.schedule.log_snr(t) / 2)
    assert float(sigma.log().mean()) == pytest.approx(-1.2, abs=0.01)
    assert float(sigma.log().std()) == pytest.approx(1.2, abs=0.02)
    assert torch.allclose(paper.weights(t), torch.ones(4000))
    # the loss of D, lambda (D - y)^2, in their units
    weights = diffusion.make(schedule={"type": "edm", "sigma_data": 0.5}, prediction="x0", weighting="edm").weights(t)
    assert torch.allclose(weights.double(), (sigma**2 + 0.25) / (sigma * 0.5) ** 2 * 0.25, rtol=1e-5)
    figures: dict[str, Any] = {
        "timestep_sampling": {"type": "log-normal", "mean": -1.2},
        "weighting": {"type": "edm", "sigma_data": 0.5},
    }
    said = diffusion.make(**{**paper.config, **figures})
    assert torch.allclose(said.sample_timesteps(u), t, atol=1e-4)
    assert torch.equal(said.weights(t), paper.weights(t))


def test_offset_noise_is_one_number_a_channel() -> None:
    keys = [generators(0, "noise", range(400)) for _ in range(3)]
    plain = diffusion.make().draw_noise(keys[0], (2, 8, 8))
    assert torch.equal(plain, normal(keys[1], (2, 8, 8)))
    offset = diffusion.make(offset_noise=0.5).draw_noise(keys[2], (2, 8, 8)) - plain
    assert float(offset.std((2, 3)).max()) < 1e-6
    assert float(offset.mean((2, 3)).std()) == pytest.approx(0.5, rel=0.1)


def test_input_perturbation_touches_the_input_only() -> None:
    process = diffusion.make(input_perturbation=0.1)
    x0, noise, extra, t = rows("x0"), rows("noise"), rows("extra"), t_of(process)
    _, sigma = process.schedule.alpha_sigma(t)
    change = process.noised(x0, noise, t, perturbation=extra) - process.noised(x0, noise, t)
    assert torch.allclose(change, 0.1 * sigma.double().view(-1, 1, 1, 1) * extra, atol=1e-6)
    assert torch.equal(process.target(x0, noise, t), noise)


def test_config_builds_the_same() -> None:
    process = diffusion.make(
        schedule={"type": "cosine", "shift": 2.0},
        prediction="v",
        loss={"type": "huber", "delta": 0.1},
        weighting={"type": "min-snr-gamma", "gamma": 3.0},
        timestep_sampling={"type": "logit-normal", "mean": 0.1},
        elbo=0.01,
        learn_logvar=True,
        offset_noise=0.1,
    )
    assert diffusion.make(**process.config).config == process.config
    for table, key in (
        (diffusion.WEIGHTINGS, "weighting"),
        (diffusion.DISTANCES, "loss"),
        (diffusion.TIMESTEP_SAMPLINGS, "timestep_sampling"),
    ):
        for name in table:
            config = diffusion.make(**{key: name}).config
            assert diffusion.make(**config).config == config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prediction": "epsilon"}, "eps, x0, v, flow"),
        ({"weighting": "min-snr"}, "min-snr-gamma"),
        ({"weighting": {"type": "p2", "g": 1}}, "k, gamma"),
        ({"loss": {"type": "l2", "delta": 1}}, "none"),
        ({"loss": {"type": "huber", "delta": 0}}, "above 0"),
        ({"timestep_sampling": {"type": "stratified", "bits": 99}}, "1 to 30"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        diffusion.make(**options)
