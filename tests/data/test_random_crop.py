"""Random crops reach every place, and each as often as the others."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from ldmkit.images.view import View, draw_view


@pytest.mark.parametrize(("picture", "size"), [((8, 8), (8, 6)), ((11, 7), (7, 7)), ((9, 12), (3, 3))])
def test_windows_reach_the_first_and_the_last_row_and_column(picture: tuple[int, int], size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    zoom = (1.0, 1.0)
    windows = [draw_view(picture, size, crop="random", zoom=zoom, generator=generator).window for _ in range(2000)]
    lefts, tops = (Counter(int(window[side]) for window in windows) for side in (0, 1))
    for found, spare in ((tops, picture[0] - size[0]), (lefts, picture[1] - size[1])):
        assert set(found) == set(range(spare + 1))
        expected = 2000 / (spare + 1)
        # Five standard deviations of a binomial count, for a seed that is fixed.
        assert all(abs(count - expected) <= 5 * expected**0.5 for count in found.values())
    assert max(window[3] for window in windows) == picture[0]
    assert max(window[2] for window in windows) == picture[1]


def test_boxes_are_mirrored_with_the_picture() -> None:
    view = View(picture=(10, 20), window=(0.0, 0.0, 20.0, 10.0), size=(10, 20), flip=True)
    found = view.boxes(np.array([[1, 0.1, 0.2, 0.3, 0.6]]))
    assert found.shape == (1, 5)
    assert torch.allclose(found, torch.tensor([[1.0, 0.7, 0.2, 0.9, 0.6]]))
