"""`Dataset`: a source's samples as a model sees them: one size, in [-1, 1], everything aligned through the same draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
from numpy.typing import NDArray

from ldmkit.data import buckets as shapes
from ldmkit.data.crop import CroppedSample, CropSettings
from ldmkit.data.jitter import Jitter
from ldmkit.data.order import BucketOrder, Order, ShuffledOrder
from ldmkit.data.sample import Problem, Sample
from ldmkit.data.source import Shards, Source
from ldmkit.errors import DataError
from ldmkit.fields import Field
from ldmkit.images.files import BadSampleError
from ldmkit.images.view import Crop, Resample, Size
from ldmkit.plugins.ranges import Above, InRecipe, Portion, Positive

ALIGNED_KINDS = ("map", "boxes", "keypoints")  # they say of themselves that they lie on the image
Buckets = Annotated[tuple[tuple[Positive, Positive], ...], pydantic.Field(min_length=1)]


class Dataset:
    """Samples of `source` cut to `size`.

    Args:
        size: (h, w) in pixels, or one number for both.
        channels: 1 or 3; default: what the source has.
        crop: where the window lies: "center" or "random".
        flip: mirror half of the views. Not for captions that say left and right.
        views: how many views each picture has; item i is view i % views of picture i // views, the same in every epoch, so that
            latents can be cached. None: a fresh view in every epoch.
        zoom: (low, high), picture pixels per view pixel, log-uniform; None: the largest window that fits.
        portion: (low, high), the window's shorter side as a portion of the largest's, uniform; instead of `zoom`.
        resample: how a window is brought to its size: antialiased "bicubic", or "area", the mean over what a pixel covers.
        jitter: the picture's colours, drawn for each view; fields that are aligned with it keep theirs.
        buckets: sizes (h, w) to be cut to instead of `size`: each picture to the nearest in aspect ratio. None: all to `size`.
        seed: of the views.
        aligned: fields that lie pixel on pixel with the image, besides all maps, boxes and keypoints.

    A source's own `view_defaults` are not applied: ``Dataset(source, size=64, **source.view_defaults)`` does. Raises
    DataError for an empty source, and for settings that no view can be cut with.
    """

    def __init__(
        self,
        source: Source,
        *,
        size: Positive | tuple[Positive, Positive],
        channels: Literal[1, 3] | None = None,
        crop: Crop = "center",
        flip: bool = False,
        views: Positive | None = 1,
        zoom: tuple[Above, Above] | None = None,
        portion: tuple[Portion, Portion] | None = None,
        resample: Resample = "bicubic",
        jitter: Jitter | None = None,
        buckets: Annotated[Sequence[Size] | None, InRecipe(Buckets | None)] = None,
        seed: int = 0,
        aligned: frozenset[str] = frozenset(),
    ) -> None:
        self.source, self.info = source, source.info()
        self.size: Size = (size, size) if isinstance(size, int) else (size[0], size[1])
        self.channels: int = self.info.channels if channels is None else channels
        self.cutting = CropSettings(self.channels, crop, flip, zoom, portion, resample, jitter)
        self.views, self.seed = views, seed
        self.buckets: tuple[Size, ...] = () if buckets is None else shapes.check(buckets)
        self.substituted: dict[Problem, None] = {}  # in the order found
        self.listener: Callable[[Problem], None] | None = None  # told of every new problem
        self._check()
        self._read = aligned  # what will be read for certain; a map that nobody asks for stays on the disk
        lies = {name for name, field in self.info.fields.items() if field.aligned or field.kind in ALIGNED_KINDS}
        self.aligned = aligned | lies

    def _check(self) -> None:
        cutting = self.cutting
        if self.info.count == 0:
            raise DataError("the source has not a single sample")
        if self.channels not in (1, 3):
            raise DataError(f"channels is {self.channels}; pictures have 1 (grey) or 3 (colour)")
        if min(self.size) < 1:
            raise DataError(f"size is {self.size[0]} x {self.size[1]}; both sides must be at least 1 pixel")
        if self.views is not None and self.views < 1:
            raise DataError(f"views is {self.views}; it must be at least 1, or null for a fresh view in every epoch")
        if cutting.zoom is not None and not 0 < cutting.zoom[0] <= cutting.zoom[1]:
            raise DataError(f"zoom is {list(cutting.zoom)}; it is [low, high] with 0 < low <= high")
        if cutting.portion is not None and not 0 < cutting.portion[0] <= cutting.portion[1] <= 1:
            raise DataError(f"portion is {list(cutting.portion)}; it is [low, high] with 0 < low <= high <= 1")
        if cutting.zoom is not None and cutting.portion is not None:
            raise DataError("zoom and portion both say how large the window is", hint="leave one of them out (null)")
        if cutting.crop not in ("center", "random"):
            raise DataError(f"crop is {cutting.crop!r}; it is center or random")
        if cutting.resample not in ("bicubic", "area"):
            raise DataError(f"resample is {cutting.resample!r}; it is bicubic or area")
        if self.buckets and self.info.count is None:
            raise DataError("an endless source cannot be sorted into buckets", hint="leave data.buckets out")

    @property
    def finite(self) -> bool:
        """Whether every epoch shows the same views of the same pictures, so that what is computed from them can be kept."""
        return self.count is not None and self.views is not None

    @property
    def drawn(self) -> bool:
        """Whether the seed decides what is seen of a picture."""
        cutting = self.cutting
        chosen = (cutting.zoom, cutting.portion, cutting.jitter)
        return cutting.flip or cutting.crop == "random" or any(option is not None for option in chosen)

    @property
    def count(self) -> int | None:
        """Items in an epoch; None = endless."""
        return None if self.info.count is None else self.info.count * (self.views or 1)

    def __len__(self) -> int:
        if self.count is None:
            raise TypeError("the source is endless and has no length; give it a count")
        return self.count

    @property
    def problems(self) -> list[Problem]:
        """What was passed over, by the source and while reading."""
        return [*self.source.problems, *self.substituted]

    # sizes and order

    @cached_property
    def _bucket_of(self) -> NDArray[np.int64]:
        """The bucket of each picture."""
        sizes = self.source.sizes()
        if sizes is None:
            raise DataError(
                f"data.buckets needs the shape of every picture before any is read, and {type(self.source).__name__} "
                "does not know it",
                hint="leave data.buckets out, or use a source that knows (folder, huggingface, webdataset)",
            )
        return shapes.assign(sizes, self.buckets)

    def size_of(self, item: int) -> Size:
        """(h, w) that an item is cut to."""
        return self.buckets[self._bucket_of[item // (self.views or 1)]] if self.buckets else self.size

    def groups(self) -> list[list[int]]:
        """The items in groups of one size, each in ascending order; empty groups are left out."""
        if not self.buckets:
            return [list(range(len(self)))]
        views = self.views or 1
        own = [np.flatnonzero(self._bucket_of == bucket) for bucket in range(len(self.buckets))]
        return [(rows[:, None] * views + np.arange(views)).ravel().tolist() for rows in own if len(rows)]

    def order(self, seed: int, batch: int) -> Order:
        """The order in which a run with this seed sees the items; with buckets, in batches of `batch`."""
        if self.buckets:
            return BucketOrder(seed, self.groups(), batch)
        shards = self.source.shards()
        if shards is not None and self.views not in (None, 1):
            shards = Shards(tuple(n * self.views for n in shards.sizes), shards.together)
        return ShuffledOrder(seed, self.count, shards=shards)

    def at_one_size(self) -> Dataset:
        """The same items, all cut to `size`."""
        if not self.buckets:
            return self
        twin = object.__new__(Dataset)  # a plain one: what a subclass keeps has the sizes of the buckets
        vars(twin).update({**vars(self), "buckets": ()})
        return twin

    # samples

    def sample(self, item: int, epoch: int = 0) -> Sample:
        """Sample `item`, its fields as `Field` describes them.

        Reading a picture that cannot be used is a `BadSampleError`. Raises DataError for an item outside [0, count).
        """
        index, key = self._place(item, epoch)
        return self._view(index, key, self.size_of(item))

    def readable(self, item: int, epoch: int = 0) -> Sample:
        """`sample`, with its picture read. Where that fails (a file changed since the scan) the next one stands in and
        `problems` says so; where none can be read, `DataError`."""
        index, key = self._place(item, epoch)
        size = self.size_of(item)  # also of what stands in: a batch has one size
        tries = 1000 if self.info.count is None else self.info.count
        for _ in range(tries):
            try:
                sample = self._view(index, key, size)
                for name in ("image", *(self._read & set(sample))):
                    sample[name]
            except BadSampleError as error:
                problem = Problem(error.path, error.reason)
                self.report(problem)
                index = index + 1 if self.info.count is None else (index + 1) % self.info.count
            else:
                return sample
        raise DataError(
            f"none of the {tries} pictures can be read any more; the last one: {problem.path}: {problem.reason}"
        )

    def report(self, problem: Problem) -> None:
        """Adds to `problems` what is not there yet (data workers find them in another process)."""
        if problem not in self.substituted:
            self.substituted[problem] = None
            if self.listener is not None:
                self.listener(problem)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "listener": None}  # what data workers find, they send

    def _place(self, item: int, epoch: int) -> tuple[int, tuple[str, int]]:
        """The index in the source, and the key of the view."""
        if item < 0 or (self.count is not None and item >= self.count):
            raise DataError(f"item {item} is outside [0, {self.count})")
        if self.views is not None:
            return item // self.views, ("view", item)
        return item, ("fresh-view", epoch * (self.count or 0) + item)

    def _view(self, index: int, key: tuple[str, int], size: Size) -> Sample:
        raw = self.source[index]
        if not isinstance(raw, Sample):
            raw = Sample(
                {name: partial(raw.__getitem__, name) for name in raw}, name=f"{type(self.source).__name__}[{index}]"
            )
        cut = CroppedSample(raw, self.cutting, size, self.seed, key)
        loaders: dict[str, Callable[[], Any]] = {}
        for name in raw:
            field = self.info.fields.get(name, Field("other"))
            if name == "image":
                loaders[name] = cut.picture
            else:
                loaders[name] = partial(cut.aligned if name in self.aligned else cut.loose, name, field)
        return Sample(loaders, name=raw.name, origins={name: raw.origin(name) for name in raw})
