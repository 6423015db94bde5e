"""Images for pre-training: an ImageFolder tree as records, and an image as a video of one frame."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from video_gn.data.decode import VideoError, VideoReader
from video_gn.data.decode.display import Crop
from video_gn.data.lists import Record
from video_gn.data.sampling import View, scaled
from video_gn.errors import PROGRAMMING_ERRORS, UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm")
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM")  # whatever the name says: others run programs (EPS) or read other files


def read_image_folder(path: str, root: str, num_classes: int, trained: Sequence[str] | None = None) -> list[Record]:
    """Return the records of a tree CLASS/IMAGE in ImageFolder's order: labels by the sorted names of the classes.

    Args:
        path: the tree, tried as given and then under `root`. Records' paths begin with it.
        trained: names of the classes that a net was trained on, by label; the tree's must be the same.

    Raises:
        UserError: there is no such folder, no image in a class, another number of classes or other ones, or a file
            whose name is not UTF-8.
    """
    from torchvision.datasets.folder import make_dataset

    classes = image_classes(path, root)
    folder = _folder(path, root)
    if len(classes) != num_classes:
        raise UserError(
            f"{folder} has {len(classes)} class folders, model.num_classes is {num_classes}; make them agree"
        )
    for label, (name, other) in enumerate(zip(classes, trained or classes, strict=True)):
        if name != other:
            raise UserError(f"{folder} has {name!r} as class {label}, the net was trained with {other!r}; rename it")
    try:
        samples = make_dataset(folder, {name: label for label, name in enumerate(classes)}, extensions=SUFFIXES)
    except FileNotFoundError as error:
        raise UserError(f"{folder}: {error}") from None
    records = [Record(os.path.relpath(file, root), label) for file, label in samples]
    for record in records:
        if record.path != record.path.encode("utf-8", "replace").decode():
            raise UserError(f"{record.path!r}: the name is not UTF-8 text; rename the file")
    return records


def image_classes(path: str, root: str) -> list[str]:
    """Return the names of a tree's class folders, by label. Raises UserError where there is no folder or none in it."""
    from torchvision.datasets.folder import find_classes

    folder = _folder(path, root)
    try:
        return find_classes(folder)[0]
    except FileNotFoundError as error:
        raise UserError(f"{folder}: {error}") from None


def _folder(path: str, root: str) -> Path:
    places = [Path(path), Path(root) / path]
    folder = next((place for place in places if place.is_dir()), None)
    if folder is None:
        raise UserError(f"no folder {path!r}: there is neither {places[0]} nor {places[1]}; set data.root")
    return folder


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def rgb_pixels(image: Image.Image) -> np.ndarray:
    """Convert an image of any of Pillow's modes to uint8 RGB (height, width, 3).

    16-bit gray (I;16 and its variants, and I, which 16-bit PGM files are read as) is scaled by 255 / 65535 and rounded.
    Opacity is left out, as torchvision does: the color of a transparent pixel is the one that is stored.

    Raises:
        ValueError: its values have no range that is known (F; I outside 0 to 65535), or Pillow cannot convert the mode.
    """
    mode = image.mode
    if mode == "F":
        raise ValueError("image of floating-point numbers (mode F), whose black and white are not known")
    if mode == "I" or mode.startswith("I;16"):
        levels = np.asarray(image).astype(np.int64)
        if levels.min() < 0 or levels.max() > 65535:
            raise ValueError(f"image of 32-bit numbers (mode I) from {levels.min()} to {levels.max()}, not 0 to 65535")
        gray = ((levels * 255 + 32767) // 65535).astype(np.uint8)
        return gray[..., None].repeat(3, -1)
    if mode == "La":  # Pillow knows only this way from premultiplied gray
        image = image.convert("LA")
    if mode == "P" and "transparency" in image.info:  # else Pillow warns
        image = image.convert("RGBA")
    try:
        return np.asarray(image.convert("RGB"))
    except ValueError:
        raise ValueError(f"image of mode {mode}, which cannot be converted to RGB") from None


class ImageReader(VideoReader):
    """An image file as a video of one frame. A JPEG is decoded at 1/2, 1/4 or 1/8 where that suffices for its views."""

    decoder = "pillow"
    num_frames = 1
    fps = None
    shrinks = True

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._image = Image.open(path, formats=FORMATS)
        except FileNotFoundError:
            raise VideoError(path, "no such file") from None
        except PROGRAMMING_ERRORS:
            raise
        except Exception as error:  # many kinds, for a damaged file
            raise VideoError(path, f"not a readable image ({_first_line(error)})") from None
        self.width, self.height = self._image.size

    def shrink(self, views: Sequence[View]) -> list[View]:
        """Choose the smallest scale of the JPEG at which no view is enlarged; returns the views at that scale."""
        factor = min(min(v.box[2] / v.height, v.box[3] / v.width) for v in views)
        self._image.draft("RGB", (int(self.width / max(factor, 1)), int(self.height / max(factor, 1))))
        width, height = self.width, self.height
        self.width, self.height = self._image.size
        return [scaled(view, self.height / height, self.width / width) for view in views]

    def _decode(self, indices: list[int], crop: Crop, out: np.ndarray) -> None:
        try:
            self._image.load()
        except PROGRAMMING_ERRORS:
            raise
        except Exception as error:
            raise VideoError(self.path, f"damaged image ({_first_line(error)})") from None
        try:
            out[:] = crop(rgb_pixels(self._image))
        except ValueError as error:
            raise VideoError(self.path, f"{error}; save it as 8-bit RGB") from None

    def close(self) -> None:
        self._image.close()
