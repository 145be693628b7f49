"""Image files as rows: each is checked once, and then read when it is needed, or kept where all fit in memory."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from ..io.files import free_memory
from . import loading

if TYPE_CHECKING:
    from PIL import Image

FOREIGN = frozenset({"EPS", "WMF", "MPEG", "GRIB", "HDF5", "BUFR", "PDF"})  # other programs read these, or nobody


IN_MEMORY = 1 << 30  # bytes of decoded images that are kept; larger sets are read in every epoch


TOGETHER = 64  # images that a worker reads for one result


FEW = 1000  # images that are read without workers


EXIF_ORIENTATION = 0x0112


class ImageFile(NamedTuple):
    """The file of an image; one in an archive begins at an ``offset`` and has ``size`` bytes."""

    path: Path
    name: str  # for messages and records
    offset: int = 0
    size: int = -1

    def read(self) -> Image.Image:
        """The image, opened; a part of an archive is read whole."""
        library = pillow()
        if self.size == 0 or (self.size < 0 and self.path.stat().st_size == 0):
            raise DataError("empty (0 bytes)")
        if self.size < 0:
            return library.open(self.path, formats=_formats())  # type: ignore[no-any-return]
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return open_image(file.read(self.size))


class DatasetImage(NamedTuple):
    """The image of a row of a data set of Python objects, by a function of the row's number."""

    name: str
    number: int
    image: Callable[[int], Image.Image]

    def read(self) -> Image.Image:
        return self.image(self.number)


Source = ImageFile | DatasetImage


class Skipped(NamedTuple):
    """A file that is no row, and why."""

    name: str
    reason: str


class Picture(NamedTuple):
    """A decoded image: upright, in RGB."""

    image: Image.Image
    grey: bool
    animated: bool  # it has several frames, and this is the first


class Reading(NamedTuple):
    """Images that were checked: the rows of those that can be read."""

    rows: list[int]  # positions among the sources
    x: Tensor | ImageStore  # (n, channels, side, side) uint8
    digests: Tensor  # (n, 16) uint8, of the pixels as they were before resizing
    gradients: Tensor  # (n, 32) uint8, of `gradient_hash`
    skipped: list[Skipped]
    animated: list[str]


def pillow() -> Any:
    """Pillow's Image module, or the name of the extra that brings it."""
    try:
        from PIL import Image
    except ImportError:
        raise DataError("reading images needs Pillow: pip install 'selfdistill[images]'") from None
    return Image


@cache
def _formats() -> list[str]:
    """The formats that Pillow reads by itself: a file runs no other program."""
    library = pillow()
    library.init()
    return sorted(set(library.OPEN) - FOREIGN)


def open_image(content: bytes) -> Image.Image:
    """The image of a file's bytes."""
    return pillow().open(io.BytesIO(content), formats=_formats())  # type: ignore[no-any-return]


@cache
def suffixes() -> frozenset[str]:
    """The suffixes of the formats that are read, such as ``.png``.

    >>> {".png", ".tif", ".webp"} <= suffixes(), ".eps" in suffixes()
    (True, False)
    """
    formats = set(_formats())
    return frozenset(suffix for suffix, name in pillow().registered_extensions().items() if name in formats)


def fault(error: Exception) -> str:
    """What is wrong with a file that cannot be read as an image, in one line."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, pillow().UnidentifiedImageError):
        return "no image by its content"
    if "truncated" in text.lower() or isinstance(error, EOFError):
        return "truncated"
    if isinstance(error, OSError) and error.strerror:
        return f"unreadable: {error.strerror.lower()}"
    return f"unreadable: {text}"


def decode(source: Source) -> Picture:
    """The decoded first frame, turned as its EXIF tag says, in RGB.

    Raises:
        DataError: the file cannot be read as an image; the message is the reason alone.
    """
    library = pillow()
    try:
        with source.read() as image:
            grey = image.mode in {"1", "L", "LA"} or image.mode.startswith("I")
            upright = _in_rgb(library, _upright(image))
            return Picture(upright, grey, image.format != "MPO" and _has_more(image))
    except DataError:
        raise
    except Exception as error:  # foreign bytes raise anything: struct.error, KeyError, zlib.error
        raise DataError(fault(error)) from None


def _has_more(image: Image.Image) -> bool:
    """Whether there is a frame after the first."""
    try:
        image.seek(1)
    except EOFError:
        return False
    except Exception:  # it is damaged, and nobody reads it
        return True
    return True


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    if image.getexif().get(EXIF_ORIENTATION, 1) == 1:
        return image
    from PIL import ImageOps

    return ImageOps.exif_transpose(image)


def _in_rgb(library: Any, image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise DataError("floating pixel values; save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits: Pillow's own conversion would clip, not scale
        values = np.asarray(image).astype(np.int64)
        if values.size and int(values.max()) > 0xFFFF:
            raise DataError("pixel values of more than 16 bits; save it with 8 or 16 bits")
        image = library.fromarray((values >> 8).clip(0, 255).astype(np.uint8))
    if image.mode in {"La", "RGBa"}:  # premultiplied by alpha, which has no direct way to RGB
        image = image.convert(image.mode.upper())
    return image.convert("RGB")


def digest(picture: Picture) -> bytes:
    """16 bytes that are equal for equal pixels, whatever the name, the format or the mode of the file."""
    image = picture.image
    return hashlib.blake2b(repr(image.size).encode() + image.tobytes(), digest_size=16).digest()


GRADIENT_SIDE, GRADIENT_MARGIN = 16, 3  # cells a side, and shades that noise of an encoder does not pass


def gradient_hash(picture: Picture) -> bytes:
    """256 bits that differ little for images that look alike: where a coarse image gets lighter from left to right.

    Source: dHash (Krawetz, Kind of Like That, 2013), with more cells and a margin.
    """
    size = (GRADIENT_SIDE + 1, GRADIENT_SIDE)
    coarse = picture.image.convert("L").resize(size, pillow().Resampling.BOX)
    shades = np.asarray(coarse, dtype=np.int16)
    return np.packbits(shades[:, 1:] - shades[:, :-1] > GRADIENT_MARGIN).tobytes()


def digests(sources: Iterable[Source]) -> Iterator[bytes]:
    """The `digest` of each image, one after another.

    Raises:
        DataError: an image cannot be read.
    """
    for source in sources:
        yield digest(_readable(source))


def _readable(source: Source) -> Picture:
    try:
        return decode(source)
    except DataError as error:
        raise DataError(f"{source.name}: not a readable image ({error}); repair or remove it") from None


class ImageStore:
    """Images that are decoded when they are asked for: ``store[ids]`` is (len(ids), channels, height, width) uint8.

    Args:
        sources: the files, one a row.
        shape: channels, height and width, to which each image is resized (bilinear).
    """

    dtype = torch.uint8

    def __init__(self, sources: Sequence[Source], shape: tuple[int, int, int]) -> None:
        self.sources, self._shape = sources, shape

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.sources), *self._shape))

    def __getitem__(self, ids: Tensor) -> Tensor:
        """Decode images.

        Raises:
            DataError: an image cannot be read; it is named.
        """
        pixels = np.empty((len(ids), *self._shape), np.uint8)
        for row, number in enumerate(ids.tolist()):
            pixels[row] = _resized(_readable(self.sources[number]).image, self._shape)
        return torch.from_numpy(pixels)

    def chunks(self, ids: Tensor, rows: int) -> Iterator[Tensor]:
        """The images of many ids, ``rows`` at a time; workers read ahead."""
        parts = [part for chunk in ids.split(rows) for part in chunk.split(TOGETHER)]
        workers = self.workers(TOGETHER) if len(ids) > TOGETHER else 0
        held, count = list[Tensor](), 0
        for pixels in loading.in_order(self.__getitem__, parts, workers):
            held.append(pixels)
            count += len(pixels)
            if count == rows:
                yield torch.cat(held)
                held, count = [], 0
        if held:
            yield torch.cat(held)

    def workers(self, rows: int, bytes_each: int = 1) -> int:
        """How many workers read ``rows`` images for a result, in so many bytes for each value."""
        return loading.num_workers(rows * bytes_each * int(np.prod(self._shape)))


def _resized(image: Image.Image, shape: tuple[int, int, int]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Pixels (channels, height, width) of an image in RGB."""
    channels, height, width = shape
    if channels == 1:
        image = image.convert("L")
    if image.size != (width, height):
        image = image.resize((width, height), pillow().Resampling.BILINEAR)
    return np.asarray(image).reshape(height, width, channels).transpose(2, 0, 1)


class _Facts(NamedTuple):
    """An image that was checked; the reason is empty if it can be read."""

    reason: str
    grey: bool = True
    animated: bool = False
    digest: bytes = b""
    gradient: bytes = b""
    pixels: Tensor | None = None


def _check(sources: Sequence[Source], side: int, keep: bool) -> list[_Facts]:
    facts = []
    for source in sources:
        try:
            picture = decode(source)
        except DataError as error:
            facts.append(_Facts(str(error)))
            continue
        pixels = torch.from_numpy(np.ascontiguousarray(_resized(picture.image, (3, side, side)))) if keep else None
        hashes = digest(picture), gradient_hash(picture)
        facts.append(_Facts("", picture.grey, picture.animated, *hashes, pixels))
    return facts


def read_all(sources: Sequence[Source], side: int) -> Reading:
    """Check and read images: (n, channels, side, side), of one channel if every image is grey.

    All of them are decoded once, by workers where they are many. They are kept if they take at most 1 GiB and a
    quarter of the free memory; otherwise each is decoded again when it is needed. Pixels are the same either way.
    """
    keep = 3 * side * side * len(sources) <= min(IN_MEMORY, free_memory() // 4)
    chunks = [sources[i : i + TOGETHER] for i in range(0, len(sources), TOGETHER)]
    workers = loading.num_workers(TOGETHER * 3 * side * side if keep else 1 << 20) if len(sources) > FEW else 0
    rows, skipped, animated, grey = list[int](), list[Skipped](), list[str](), True
    digests, gradients = list[bytes](), list[bytes]()
    x = torch.empty(len(sources) if keep else 0, 3, side, side, dtype=torch.uint8)
    facts = (fact for part in loading.in_order(partial(_check, side=side, keep=keep), chunks, workers) for fact in part)
    for position, (source, fact) in enumerate(zip(sources, facts, strict=True)):
        if fact.reason:
            skipped.append(Skipped(source.name, fact.reason))
            continue
        if fact.pixels is not None:
            x[len(rows)] = fact.pixels
        rows.append(position)
        digests.append(fact.digest)
        gradients.append(fact.gradient)
        grey = grey and fact.grey
        if fact.animated:
            animated.append(source.name)
    channels = 1 if grey else 3
    kept: Tensor | ImageStore = x[: len(rows), :channels].contiguous()
    if not keep:
        kept = ImageStore([sources[row] for row in rows], (channels, side, side))
    return Reading(rows, kept, _table(digests, 16), _table(gradients, 32), skipped, animated)


def _table(hashes: list[bytes], width: int) -> Tensor:
    """Hashes as (n, width) uint8."""
    if not hashes:
        return torch.zeros(0, width, dtype=torch.uint8)
    return torch.frombuffer(bytearray(b"".join(hashes)), dtype=torch.uint8).view(-1, width)


def row_sources(dataset: Any, name: str) -> tuple[Tensor | list[DatasetImage], Tensor]:
    """The inputs of a data set's rows, tensors in one and images to be read, and their labels.

    Raises:
        DataError: the data set has no length, or its rows are no pairs of an input and a label.
    """
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__") or not len(dataset):
        raise DataError(f"{name}: a {type(dataset).__name__} has no rows by number; give a data set with a length")
    first = _row(dataset, 0, name)[0]
    if isinstance(first, pillow().Image):
        sources = [DatasetImage(f"{name}[{i}]", i, partial(_image_of, dataset, name)) for i in range(len(dataset))]
        return sources, _labels(dataset, name)
    rows = [_row(dataset, i, name) for i in range(len(dataset))]
    try:
        x = torch.stack([torch.as_tensor(row[0]) for row in rows])
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{name}: rows with {type(first).__name__} for inputs are no tensors of one shape "
            f"({str(error).splitlines()[0]}); give images of Pillow, or tensors of one shape"
        ) from None
    return x, torch.tensor([row[1] for row in rows])


def _image_of(dataset: Any, name: str, number: int) -> Image.Image:
    return _row(dataset, number, name)[0].copy()  # type: ignore[no-any-return]  # it will be closed


def _labels(dataset: Any, name: str) -> Tensor:
    """The labels, without an image being decoded where the data set has them apart."""
    targets = vars(dataset).get("targets") if hasattr(dataset, "__dict__") else None
    if targets is None:
        targets = [_row(dataset, i, name)[1] for i in range(len(dataset))]
    return torch.as_tensor(targets).long()


def _row(dataset: Any, number: int, name: str) -> tuple[Any, Any]:
    """Input and label of a row: those of a pair, or the only image (or ``x``) and label of a mapping."""
    row = dataset[number]
    if isinstance(row, dict):
        inputs = [row[key] for key in row if key == "x" or isinstance(row[key], pillow().Image)]
        labels = [row[key] for key in ("label", "labels", "y", "target") if key in row]
    elif isinstance(row, tuple | list) and len(row) >= 2:
        inputs, labels = [row[0]], [row[1]]
    else:
        inputs, labels = [], []
    label = labels[0].item() if labels and hasattr(labels[0], "item") else next(iter(labels), None)
    if len(inputs) != 1 or not isinstance(label, int | float):
        raise DataError(
            f"{name}: row {number} is a {type(row).__name__} without one input and a number for its label; give rows "
            "(x, y), or mappings with one image and its 'label'"
        )
    return inputs[0], label
