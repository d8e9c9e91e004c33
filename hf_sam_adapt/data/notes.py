"""Sentences about a data set, with and without the names of its files."""

from __future__ import annotations

from pathlib import Path


class Note(str):
    """A sentence that is printed as it is.

    Attributes:
        public: what others may read of it. Where folders lie is nobody else's concern, and the names of files may be
            patients'.
    """

    public: str

    def __new__(cls, text: str, public: str | None = None) -> Note:
        note = super().__new__(cls, text)
        note.public = text if public is None else public
        return note

    @classmethod
    def about(cls, text: str, *places: str) -> Note:
        """`text` with its `{}` filled by data sets or runs; in public by the bare names of those that are folders."""
        return cls(text.format(*places), text.format(*map(bare_name, places)))


def bare_name(place: str) -> str:
    """The name of a folder without where it lies; any other name as it is."""
    folder = Path(place).expanduser()
    return folder.resolve().name if folder.is_dir() else place


def public(note: str) -> str:
    """What others may read of a sentence."""
    return note.public if isinstance(note, Note) else note
