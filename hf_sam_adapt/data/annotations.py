"""What annotation files of all tools have in common: text in some encoding, the image that they name, and its size."""

from __future__ import annotations

import codecs
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from PIL import Image

from ..errors import UserError
from .areas import FARTHEST
from .stored import EXIF_ORIENTATION, open_stored
from .walk import one_form


BACKGROUND_LABELS = ("_background_", "__background__", "background")
IGNORE_LABELS = ("__ignore__", "ignore")
ONLY_CLASS = "object"  # where no area has a label
CHECKED = "checked"  # flag of a predicted annotation that a person has looked at
SOURCE = "source"  # key of an annotation file that was predicted; labelme keeps it
CLASSES = "classes"  # key of such a file: the names of the classes 1, 2, …
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_PAIR = re.compile(rb"[\x81-\xfe][\x40-\x7e\x80-\xfe]")
_USUAL_CHINESE = re.compile(rb"[\xb0-\xd7][\xa1-\xfe]")  # the 3,755 characters of GB 2312's first level
_DRIVE = re.compile(r"^[A-Za-z]:$")


def read_text(file: Path, encoding: str | None = None) -> tuple[str, str | None]:
    """The text of a file, in Unicode or in a code page of Windows.

    Args:
        file: with or without a byte order mark.
        encoding: of a text that is not Unicode; None = GBK or Western European, whichever the bytes look like.

    Returns:
        The text, and the encoding where it is not Unicode.

    Raises:
        UserError: not readable, or not in this or any of these encodings.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"not readable ({error.strerror})", where=file, fix="check the file") from error
    codec = next((codec for mark, codec in _MARKS if content.startswith(mark)), None)
    if codec is None and b"\0" in content[:2]:
        codec = "utf-16-be" if content[:1] == b"\0" else "utf-16-le"
    try:
        return content.decode(codec or "utf-8"), None
    except UnicodeDecodeError as error:
        if codec is not None:
            raise UserError(f"a damaged text ({error})", where=file, fix="save it as UTF-8") from error
    guess = encoding or _code_page(content)
    try:
        return content.decode(guess or "ascii"), guess
    except LookupError as error:
        raise UserError(
            f"{encoding} is unknown", key="encoding", fix="name one of Python's, such as gbk or shift_jis"
        ) from error
    except UnicodeDecodeError as error:
        said = f"not {encoding}" if encoding else "its encoding is not clear"
        hint = "save it as UTF-8, or name its encoding by --encoding of convert"
        raise UserError(f"not UTF-8, and {said}", where=file, fix=hint) from error


def _code_page(content: bytes) -> str | None:
    """GBK where most characters of two bytes are usual Chinese ones, Western European where all others are letters."""
    pairs = _PAIR.findall(content)
    usual = sum(bool(_USUAL_CHINESE.fullmatch(pair)) for pair in pairs)
    try:
        if pairs and 2 * usual >= len(pairs):
            content.decode("gbk")
            return "gbk"
        if all(letter.isalpha() or letter in "°µ²³" for letter in content.decode("cp1252") if letter > "\x7f"):
            return "cp1252"
    except UnicodeDecodeError:
        return None
    return None


class FoundImage(NamedTuple):
    """The file that an annotation names, and a name for it without folders: `a/b/x.jpg` -> `a_b_x`."""

    path: Path
    stem: str


def find_image(name: str, folders: Sequence[Path], source: str) -> FoundImage:
    """The image that an annotation names, on whatever machine it was written.

    Separators of Windows, absolute paths, addresses (`http://…/a%20b.jpg`, Label Studio's `?d=…`), and names that
    differ in case or Unicode form only are understood. Of a path that does not exist as many of its last parts as
    possible are looked for.

    Args:
        name: as written.
        folders: where images may lie, the likeliest first.
        source: what an error message calls the annotation.

    Raises:
        UserError: it is in none of the folders.
    """
    for text in _spellings(name):
        literal = next((folder / text for folder in folders if (folder / text).is_file()), None)
        if literal is not None:
            return FoundImage(literal, stem_of(_within(literal, folders) if os.path.isabs(text) else text))
    paths = [_parts(text) for text in _spellings(name)]
    for length in range(max(map(len, paths)), 0, -1):
        for parts in paths:
            for place in (folder.joinpath(*parts[-length:]) for folder in folders if len(parts) >= length):
                found = place if place.is_file() else _namesake(place)
                if found is not None:
                    return FoundImage(found, stem_of(Path(*parts[-length:])))
    hint = "put it there, or name its folder by --images of convert"
    raise UserError(f"the image {name} is not in {folders[0].name} nor beside it", where=source, fix=hint)


def stem_of(path: str | Path) -> str:
    """`a/b/x.jpg` -> `a_b_x`, in one Unicode form."""
    return one_form("_".join(_parts(os.path.splitext(os.fspath(path))[0])))


def _parts(path: str) -> list[str]:
    parts = path.replace("\\", "/").split("/")
    return [part for part in parts if part not in ("", "..", ".") and not _DRIVE.match(part)]


def _spellings(name: str) -> Iterator[str]:
    """A name as it is written, and as a path of this system."""
    yield name
    text = name.replace("\\", "/")
    if text != name:
        yield text
    address, _, local = text.partition("?d=")
    texts = [local] if local else []
    if "://" in address:
        texts.append(urlsplit(address).path)
    for one in (text, *texts):
        yield from dict.fromkeys(spelt for spelt in (one, unquote(one)) if spelt not in (name, text))


def _within(path: Path, folders: Sequence[Path]) -> Path:
    """The path as seen from the first folder that it lies in."""
    places = [path.absolute(), *(folder.absolute() for folder in folders)]
    inside = next((place for place in places[1:] if places[0].is_relative_to(place)), None)
    return places[0] if inside is None else places[0].relative_to(inside)


def _namesake(place: Path) -> Path | None:
    """The one file whose name differs from that of `place` in case or Unicode form only."""

    def folded(name: str) -> str:
        return one_form(name).casefold()

    try:
        names = os.listdir(place.parent)
    except OSError:
        return None
    alike = [name for name in names if folded(name) == folded(place.name)]
    return place.parent / alike[0] if len(alike) == 1 and (place.parent / alike[0]).is_file() else None


def image_side(value: Any, name: str) -> int | None:
    """A height or width as it is written (640, 640.0, "640"); None where it is not said (null, "", 0 or below).

    Raises:
        UserError: anything else, naming `name`.
    """
    if value is None or value == "":
        return None
    try:
        side = float(value)
        if isinstance(value, bool) or not math.isfinite(side) or side != int(side) or side >= FARTHEST:
            raise ValueError(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{value!r} is not a height or width in pixels", where=name, fix="correct it there") from error
    return int(side) if side > 0 else None


def is_turned(file: str | os.PathLike) -> bool:
    """Whether an image's EXIF orientation swaps its height and width. Raises `UserError` for an unreadable one."""
    with open_stored(file) as image:
        return isinstance(image, Image.Image) and image.getexif().get(EXIF_ORIENTATION, 1) >= 5


def label_of(value: Any) -> str | None:
    """A label as it is written, None for one that is absent or empty."""
    return (str(value).strip() or None) if value is not None else None
