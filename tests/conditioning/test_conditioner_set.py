"""The seam: absence, dropout, joining and the errors that name the slot."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

from ldmkit.conditioning import (
    Canvas,
    Conditioner,
    ConditionerSet,
    Conditioning,
    Dropout,
    Ports,
    concatenate,
    pad_stack,
)
from ldmkit.conditioning import user_inputs as user_values
from ldmkit.errors import PluginError, RecipeError, UsageError
from ldmkit.random import generators


class Words(Conditioner):
    """Tokens of different length; the null has a length of its own."""

    reads = ("words",)

    def __init__(self, *, width: int = 6, length: int = 4, null_length: int = 1) -> None:
        super().__init__()
        self.emits, self.null_length = Ports(tokens=width, length=length), null_length
        self.table = nn.Embedding(10, width)
        self.nothing = nn.Parameter(torch.randn(1, null_length, width))

    def collate(self, prepared):
        ids, mask = pad_stack([row["words"] for row in prepared])
        return {"words": ids.long(), "mask": mask}

    def encode(self, prepared, canvas):
        return Conditioning(tokens=self.table(prepared["words"]), mask=prepared["mask"])

    def null(self, canvas):
        return Conditioning(tokens=self.nothing)


class Numbers(Conditioner):
    reads = ("number",)

    def __init__(self, *, width: int = 5) -> None:
        super().__init__()
        self.emits = Ports(vector=width)
        self.net = nn.Linear(1, width)

    def prepare(self, sample, generator=None):
        return {"number": torch.tensor([float(sample["number"])])}

    def encode(self, prepared, canvas):
        return Conditioning(vector=self.net(prepared["number"]))

    def null(self, canvas):
        return Conditioning(vector=canvas.zeros(1, self.emits.vector))


class Plane(Conditioner):
    reads = aligned = ("plane",)

    def __init__(self, *, channels: int = 2, wrong: int = 0) -> None:
        super().__init__()
        self.emits, self.wrong = Ports(concat=channels), wrong

    def encode(self, prepared, canvas):
        level = prepared["plane"].reshape(-1, 1, 1, 1).to(canvas.dtype)
        return Conditioning(concat=level.expand(-1, self.emits.concat + self.wrong, *canvas.grid))

    def null(self, canvas):
        return Conditioning(concat=canvas.zeros(1, self.emits.concat, *canvas.grid) - 7)


@pytest.fixture
def canvas() -> Canvas:
    return Canvas((32, 32), (8, 8), torch.device("cpu"), torch.float32, lambda images: images)


def batch_of(conditioners: ConditionerSet, rows: list[dict[str, object]]):
    prepared, _ = user_values.prepare(conditioners, rows, None, (32, 32))
    return conditioners.collate(torch.zeros(len(rows), 3, 1, 1), prepared, torch.arange(len(rows)))


def test_tokens_of_two_slots_are_projected_padded_and_joined_with_their_masks(canvas):
    torch.manual_seed(0)
    small, large = Words(width=4), Words(width=6)
    both = ConditionerSet({"a": small, "b": large}, vector_width=8).eval()
    batch = batch_of(
        both,
        [{"a": torch.tensor([1, 2]), "b": torch.tensor([3])}, {"a": torch.tensor([4]), "b": torch.tensor([5, 6, 7])}],
    )
    out = both(batch.prepared, batch.present, canvas, 2)
    assert both.context_width == 6
    projection = both._token_projections["a"]
    expected = torch.cat([projection(small.table(torch.tensor([1, 2]))), large.table(torch.tensor([3]))])
    torch.testing.assert_close(out.tokens[0][out.mask[0]], expected)
    assert out.mask.tolist() == [[True, True, True, False, False], [True, False, True, True, True]]


def test_vectors_are_projected_and_summed(canvas):
    one, two = Numbers(width=5), Numbers(width=8)
    both = ConditionerSet({"one": one, "two": two}, vector_width=8).eval()
    batch = batch_of(both, [{"one": 2.0, "two": 3.0}])
    out = both(batch.prepared, batch.present, canvas, 1)
    expected = both._vector_projections["one"](one.net(torch.tensor([[2.0]]))) + two.net(torch.tensor([[3.0]]))
    torch.testing.assert_close(out.vector, expected)
    assert "two" not in both._vector_projections


def test_concat_is_joined_in_recipe_order(canvas):
    both = ConditionerSet({"z": Plane(channels=1), "a": Plane(channels=2)}, vector_width=8)
    batch = batch_of(both, [{"z": torch.tensor(1.0), "a": torch.tensor(2.0)}])
    out = both(batch.prepared, batch.present, canvas, 1)
    assert out.concat.shape == (1, 3, 8, 8)
    assert out.concat[0, :, 0, 0].tolist() == [1.0, 2.0, 2.0]


def test_absent_and_dropped_rows_are_the_null_and_the_others_are_untouched(canvas):
    plane = Plane()
    conditioners = ConditionerSet({"plane": plane, "words": Words()}, vector_width=8).eval()
    words = torch.tensor([1, 2, 3])
    rows = [
        {"plane": torch.tensor(1.0), "words": words},
        {"words": words},
        {"plane": torch.tensor(3.0), "words": words},
    ]
    batch = batch_of(conditioners, rows)
    out = conditioners(batch.prepared, batch.present, canvas, 3, dropped={"plane": torch.tensor([False, False, True])})
    assert out.concat[:, 0, 0, 0].tolist() == [1.0, -7.0, -7.0]
    whole = conditioners(batch.prepared, batch.present, canvas, 3)
    assert whole.concat[:, 0, 0, 0].tolist() == [1.0, -7.0, 3.0]
    torch.testing.assert_close(out.tokens, whole.tokens)


def test_a_longer_null_pads_the_others_and_masks_the_padding(canvas):
    words = Words(null_length=3)
    conditioners = ConditionerSet({"words": words}, vector_width=8).eval()
    batch = batch_of(conditioners, [{"words": torch.tensor([1])}, {}])
    out = conditioners(batch.prepared, batch.present, canvas, 2)
    assert out.mask.tolist() == [[True, False, False], [True, True, True]]
    torch.testing.assert_close(out.tokens[1], words.nothing[0])


def test_where_no_row_has_it_the_encoder_still_joins_the_graph(canvas):
    words = Words()
    conditioners = ConditionerSet({"words": words}, vector_width=8).train()
    out = conditioners({"words": None}, {"words": torch.zeros(2, dtype=torch.bool)}, canvas, 2)
    out.tokens.sum().backward()
    assert words.table.weight.grad is not None
    assert not words.table.weight.grad.any()
    assert words.nothing.grad.abs().sum() > 0


def test_a_negative_value_stands_in_for_the_null(canvas):
    conditioners = ConditionerSet({"plane": Plane()}, vector_width=8).eval()
    batch = batch_of(conditioners, [{"plane": torch.tensor(1.0)}])
    out = conditioners(
        batch.prepared,
        batch.present,
        canvas,
        1,
        dropped={"plane": torch.tensor([True])},
        negative={"plane": {"plane": torch.tensor([5.0])}},
    )
    assert out.concat.unique().item() == 5.0


def test_a_wrong_answer_names_the_slot_the_shape_and_the_promise(canvas):
    conditioners = ConditionerSet({"depth": Plane(wrong=1)}, vector_width=8)
    batch = batch_of(conditioners, [{"depth": torch.tensor(1.0)}])
    with pytest.raises(
        PluginError, match=r"slot depth \(Plane\) gave concat of shape \(1, 3, 8, 8\); expected \(1, 2, 8, 8\)"
    ):
        conditioners(batch.prepared, batch.present, canvas, 1)


def test_weights_are_named_after_the_slot_whatever_the_slot_is_called():
    conditioners = ConditionerSet(
        {"type": Words(width=4), "fields": Numbers(), "values": Words(width=6)}, vector_width=8
    )
    names = set(conditioners.state_dict())
    assert {"type.table.weight", "fields.net.bias", "_token_projections.type.weight"} <= names
    conditioners.train().eval()
    with pytest.raises(UsageError, match="training"):
        ConditionerSet({"training": Numbers()}, vector_width=8)


def test_frozen_submodules_take_no_gradient_and_stay_in_eval_mode():
    class Frozen(Numbers):
        frozen = ("net",)

    conditioners = ConditionerSet({"number": Frozen()}, vector_width=8).train()
    frozen = conditioners["number"]
    assert not frozen.net.training
    assert not frozen.net.weight.requires_grad
    assert frozen.frozen_parameters() == {"net.weight", "net.bias"}


def test_the_copy_for_workers_has_no_weights_and_prepares_the_same():
    words = Words()
    copy = pickle.loads(pickle.dumps(words.weightless()))
    assert not list(copy.parameters())
    assert not list(copy.children())
    assert copy.emits == words.emits
    assert torch.equal(copy.prepare({"words": torch.tensor([1])})["words"], torch.tensor([1]))


def test_nulls_are_materialised_by_slot_and_port(canvas):
    words = Words()
    nulls = ConditionerSet({"words": words, "plane": Plane()}, vector_width=8).nulls(canvas)
    assert set(nulls) == {"words.tokens", "plane.concat"}
    torch.testing.assert_close(nulls["words.tokens"], words.nothing.detach())


def test_concatenate_pads_and_masks_tokens():
    short = Conditioning(tokens=torch.ones(1, 2, 3))
    long = Conditioning(tokens=torch.ones(2, 4, 3))
    out = concatenate([short, long])
    assert out.tokens.shape == (3, 4, 3)
    assert out.mask.tolist() == [[True, True, False, False], [True] * 4, [True] * 4]
    assert concatenate([short, short]).mask is None


def test_independent_dropout_follows_its_rates_by_chi_square():
    dropout = Dropout.independent({"a": 0.3, "b": 0.5})
    n = 20_000
    drawn = dropout.draw(generators(3, "dropout", range(n)))
    expected = {(False, False): 0.35, (True, False): 0.15, (False, True): 0.35, (True, True): 0.15}
    pairs = list(zip(drawn["a"].tolist(), drawn["b"].tolist(), strict=True))
    chi = sum((pairs.count(cell) - n * p) ** 2 / (n * p) for cell, p in expected.items())
    assert chi < 16.27  # the 0.999 quantile of chi-square with 3 degrees of freedom


def test_a_table_drops_exactly_its_subsets_by_chi_square():
    dropout = Dropout.from_table(("text", "low_res"), {"text": 0.1, "low_res": 0.05, "text+low_res": 0.05})
    n = 20_000
    drawn = dropout.draw(generators(4, "dropout", range(n)))
    pairs = list(zip(drawn["text"].tolist(), drawn["low_res"].tolist(), strict=True))
    expected = {(False, False): 0.8, (True, False): 0.1, (False, True): 0.05, (True, True): 0.05}
    chi = sum((pairs.count(cell) - n * p) ** 2 / (n * p) for cell, p in expected.items())
    assert chi < 16.27
    assert dropout.trained == {frozenset(), frozenset({"text"}), frozenset({"low_res"}), frozenset({"text", "low_res"})}
    assert dropout.to_json() == {"text": 0.1, "low_res": 0.05, "text+low_res": 0.05}


def test_a_row_is_dropped_by_its_own_key_whatever_its_batch():
    dropout = Dropout.independent({"a": 0.5})
    together = dropout.draw(generators(1, "dropout", range(16)))["a"]
    apart = torch.cat([dropout.draw(generators(1, "dropout", [i]))["a"] for i in range(16)])
    assert torch.equal(together, apart)


@pytest.mark.parametrize(
    ("table", "message"),
    [({"colour": 0.1}, "dropout names colour; the slots are text"), ({"text": 1.2}, "lies between 0 and 1")],
)
def test_a_wrong_dropout_table_says_what_is_allowed(table, message):
    with pytest.raises(RecipeError, match=message):
        Dropout.from_table(("text",), table)


def test_values_are_one_mapping_an_image_or_batches_of_rows():
    assert user_values.rows(None, 3) == [{}, {}, {}]
    assert user_values.rows({"class": 3}, 2) == [{"class": 3}, {"class": 3}]
    assert [int(row["class"]) for row in user_values.rows({"class": torch.tensor([1, 2])}, None)] == [1, 2]
    assert user_values.rows([{"class": 1}, {}], None) == [{"class": 1}, {}]
    with pytest.raises(UsageError, match="count is 3, but class holds 2 rows"):
        user_values.rows({"class": torch.tensor([1, 2])}, 3)
    with pytest.raises(UsageError, match=r"no slot is called colour\n  the slots of this model are plane"):
        user_values.prepare(ConditionerSet({"plane": Plane()}, vector_width=8), [{"colour": 1}], None, (32, 32))


def test_selecting_rows_of_a_batch_keeps_every_part_together():
    conditioners = ConditionerSet({"plane": Plane(), "words": Words()}, vector_width=8)
    batch = batch_of(conditioners, [{"plane": torch.tensor(float(i))} for i in range(3)])
    picked = batch.select([2, 0])
    assert picked.positions.tolist() == [2, 0]
    assert picked.prepared["plane"]["plane"].tolist() == [2.0, 0.0]
    assert picked.prepared["words"] is None
    assert len(picked) == 2
