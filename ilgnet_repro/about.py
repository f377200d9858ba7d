"""What is known of a net besides its layers and weights: source, preprocessing, labels, score."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .errors import FormatError, printable
from .files import json_text, parse_json
from .known import ASSUMED, Identity, KnownModel, ScoreAt, assumed, assumed_note, find_model
from .reading.net_preprocessing import preprocessing_of
from .reading.preprocessing import Preprocessing
from .schema import caffe_pb2 as pb

FEW = 8  # labels shown in a repr
RANDOM_MARK = "RANDOM weights"
"""A weights file whose net has this in its name states that it was not trained."""


@dataclass(frozen=True)
class Source:
    """Where the weights came from; ``net`` is what the weights file itself calls its net.

    ``sha256`` is None where the file was not hashed, ``release`` the name of the known model.  ``derived``
    lists what was done to its weights since ("folded", "int8", or "changed" for anything else).
    """

    file: str
    bytes: int
    sha256: str | None = None
    release: str | None = None
    net: str = ""
    derived: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "file": self.file,
            "bytes": self.bytes,
            "sha256": self.sha256,
            "release": self.release,
            "net": self.net,
            **({"derived": self.derived} if self.derived else {}),
        }

    def after(self, change: str) -> Source:
        """Return this with ``change`` added to ``derived``, unless it is there already."""
        known = self.derived.split(", ") if self.derived else []
        return self if change in known else replace(self, derived=", ".join([*known, change]))

    @classmethod
    def from_json(cls, values: Any) -> Source:
        """Read the result of `to_json`; missing keys are unknown.  Raises FormatError on anything else."""
        kinds: dict[str, type | tuple[type, ...]] = {
            "file": str, "bytes": int, "sha256": (str, type(None)), "release": (str, type(None)), "net": str,
            "derived": str,
        }  # fmt: skip
        if not isinstance(values, dict) or not {"file", "bytes"} <= values.keys():
            raise FormatError("source: not as this package writes it; convert the weights again")
        stated = {key: values[key] for key in kinds if key in values}
        for key, value in stated.items():
            if not isinstance(value, kinds[key]) or isinstance(value, bool):
                raise FormatError(
                    f"source: {key} {value!r:.60} is of the wrong type; convert the weights again"
                )
        return cls(**stated)


@dataclass(frozen=True)
class Drawn:
    """The layers that hold weights drawn at random, ``of`` so many that have weights."""

    layers: tuple[str, ...]
    of: int

    def describe(self) -> str:
        """Return what is drawn in a few words."""
        if len(self.layers) >= self.of:
            return f"drawn at random: all {self.of} layers" if self.of > 1 else "drawn at random"
        more = f" and {len(self.layers) - FEW} more" if len(self.layers) > FEW else ""
        shown = ", ".join(self.layers[:FEW])
        return f"drawn at random: {len(self.layers)} of {self.of} layers: {shown}{more}"

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"layers": list(self.layers), "of": self.of}

    @classmethod
    def from_json(cls, values: Any) -> Drawn | None:
        """Read the result of `to_json`; None is nothing drawn.  Raises FormatError on anything else."""
        if values is None:
            return None
        is_valid = (
            isinstance(values, dict)
            and values.keys() == {"layers", "of"}
            and isinstance(values["layers"], list)
            and all(isinstance(name, str) for name in values["layers"])
            and type(values["of"]) is int
            and 0 < len(values["layers"]) <= values["of"]
        )
        if not is_valid:
            raise FormatError("about: drawn: not as this package writes it; convert the weights again")
        return cls(tuple(values["layers"]), values["of"])


@dataclass(frozen=True, repr=False)
class About:
    """The metadata of a net.

    ``assumed`` means that preprocessing, labels and score are those of a model with the same layers, which
    may differ from the model these weights were trained as.  ``model`` is the name of the known model.  ``prototxt``
    is where the net's text was found, ``extra_layers`` are layers of the weights file that the net lacks, ``drawn``
    those whose weights were drawn at random (`runtime.drawn.about_now` compares them with what was drawn).
    ``image_order`` is the channel order of a net that prepares uint8 images itself.
    """

    preprocessing: Preprocessing | None = None
    assumed: bool = False
    source: Source | None = None
    labels: tuple[str, ...] = ()
    score: ScoreAt | None = None
    model: str = ""
    notes: tuple[str, ...] = ()
    prototxt: str = ""
    extra_layers: tuple[str, ...] = ()
    filled: tuple[str, ...] = ()
    image_order: str = ""
    drawn: Drawn | None = None

    @property
    def random(self) -> str:
        """Why the outputs mean nothing, as far as it is known: the file states random weights, or layers were drawn."""
        if self.source is not None and RANDOM_MARK in self.source.net:
            return f"the file says: {self.source.net}"
        return self.drawn.describe() if self.drawn else ""

    @property
    def is_random_in_part(self) -> bool:
        """Whether only some of the layers hold random weights."""
        return bool(self.random) and self.drawn is not None and len(self.drawn.layers) < self.drawn.of

    @property
    def random_notes(self) -> tuple[str, ...]:
        """A line for users of random weights; none for other weights."""
        if not self.random:
            return ()
        if self.is_random_in_part:
            return (f"{RANDOM_MARK} in part of the net, so its scores may mean nothing ({self.random})",)
        return (f"{RANDOM_MARK}, its scores mean nothing ({self.random})",)

    def stating(self, preprocessing: Preprocessing) -> About:
        """Return this with the caller's preprocessing; a note keeps what else was assumed."""
        if not self.assumed:
            return replace(self, preprocessing=preprocessing)
        notes = tuple(note for note in self.notes if not note.startswith(ASSUMED))
        if self.labels or self.score:
            notes += (f"labels and score are assumed from those of {self.model}",)
        return replace(self, preprocessing=preprocessing, assumed=False, model="", notes=notes)

    def __repr__(self) -> str:
        guess = " (assumed)" if self.assumed else ""
        how = self.preprocessing.describe() if self.preprocessing else "unknown"
        lines = [f"preprocessing: {how}{guess if self.preprocessing else ''}"]
        if self.source:
            known = [one for one in (self.source.release, self.source.derived) if one]
            lines.append(", ".join([f"source: {self.source.file}, {self.source.bytes:,} bytes", *known]))
        if self.model:
            lines.append(f"model: {self.model}{guess}")
        if self.labels:
            more = ", ..." if len(self.labels) > FEW else ""
            lines.append(f"labels: {len(self.labels)} ({', '.join(self.labels[:FEW])}{more})")
        if self.score:
            lines.append(f"score: {self.score.output}[{self.score.index}], {self.score.meaning}")
        if self.random:
            lines.append(f"random weights: {self.random}")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(["About:", *(f"  {printable(line)}" for line in lines)])

    def to_metadata(self) -> dict[str, str]:
        """Return the metadata of a converted file; a mean image is stored separately, as a tensor."""
        about = {
            **({"model": self.model} if self.model else {}),
            **({"assumed": True} if self.assumed else {}),
            **({"labels": list(self.labels)} if self.labels else {}),
            **({"score": _stated(self.score)} if self.score else {}),
            **({"drawn": self.drawn.to_json()} if self.drawn else {}),
        }
        return {
            **({"source": json_text(self.source.to_json())} if self.source else {}),
            **({"preprocessing": self.preprocessing.to_json()} if self.preprocessing else {}),
            **({"about": json_text(about)} if about else {}),
        }

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], mean_image: np.ndarray | None = None) -> About:
        """Read the result of `to_metadata`, also of earlier versions, which wrote no ``about``.

        Raises FormatError, or DataError for the preprocessing, on anything else.
        """
        how = metadata.get("preprocessing")
        source = metadata.get("source")
        about = cls(
            preprocessing=None if how is None else Preprocessing.from_json(how, mean_image),
            source=None if source is None else Source.from_json(_object("source", source)),
            **_read_about(_object("about", metadata.get("about", "{}"))),
        )
        notes = () if about.source is None or not about.source.derived else (
            f"the weights are those of {about.source.file}, {about.source.derived} since",
        )  # fmt: skip
        model = find_model(about.model) if about.assumed else None
        return replace(about, notes=(*notes, assumed_note(model)) if model else notes)


def _stated(score: ScoreAt) -> dict[str, Any]:
    """Return the fields of a score; without a distribution, those of files of earlier versions."""
    return {key: value for key, value in vars(score).items() if value != "" or key != "distribution"}


def _object(key: str, text: str) -> dict[str, Any]:
    try:
        values = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{key}: is not JSON ({error}); convert the weights again") from error
    if not isinstance(values, dict):
        raise FormatError(f"{key}: not as this package writes it; convert the weights again")
    return values


def _read_about(values: dict[str, Any]) -> dict[str, Any]:
    model, guess = values.get("model", ""), values.get("assumed", False)
    labels, score = values.get("labels", []), values.get("score")
    is_valid = (
        isinstance(model, str)
        and isinstance(guess, bool)
        and isinstance(labels, list)
        and all(isinstance(label, str) for label in labels)
    )
    if is_valid and score is not None:
        is_valid = (
            isinstance(score, dict)
            and score.keys() - {"distribution"} == {"output", "index", "meaning"}
            and isinstance(score.get("distribution", ""), str)
            and isinstance(score["output"], str)
            and type(score["index"]) is int
            and score["index"] >= 0
            and isinstance(score["meaning"], str)
        )
    if not is_valid:
        raise FormatError("about: not as this package writes it; convert the weights again")
    at = None if score is None else ScoreAt(**score)
    drawn = Drawn.from_json(values.get("drawn"))
    return {"model": model, "assumed": guess, "labels": tuple(labels), "score": at, "drawn": drawn}


# --------------------------------------------------------------------------- what is known of a net


def about_net(
    text: pb.NetParameter,
    identity: Identity | None = None,
    *,
    net: str = "",
    phase: str = "TEST",
    level: int = 0,
    stages: Iterable[str] = (),
    shape: tuple[int, ...] | None = None,
    outputs: Collection[str] = (),
    folder: Path | None = None,
) -> About:
    """Return what is known of a net in modern form and of the file of its weights.

    The preprocessing is that of the net's own data layer; otherwise that of the known model, if the file is one;
    otherwise, with a note, that of a model with the same layers or file name.  ``net``
    is the file's own name for its net, ``shape`` that of the net's image input, ``outputs`` the net's, ``folder``
    the prototxt's.
    """
    channels, size = (shape[1], (shape[2], shape[3])) if shape and len(shape) == 4 else (None, None)
    how, notes_of_text = preprocessing_of(
        text, phase, size, folder, channels=channels, level=level, stages=stages
    )
    notes = list(notes_of_text)
    model, reason = (identity.model if identity else None), ""
    if model is None and how is None:  # no guess where the net states its own
        model, reason = _guess(text, identity.suspected if identity else None, size)
        if model:
            notes.append(assumed_note(model, reason))
    source = None
    if identity:
        release = identity.model.name if identity.model else None
        source = Source(identity.file, identity.bytes, identity.sha256, release, net)
    if model is None:
        return About(how, source=source, notes=tuple(notes))
    score = model.score if model.score and model.score.output in outputs else None
    return About(
        how or model.preprocessing, assumed=bool(reason), source=source, labels=model.labels, score=score,
        model=model.name, notes=tuple(notes),
    )  # fmt: skip


def _guess(
    text: pb.NetParameter, named: KnownModel | None, size: tuple[int, int] | None
) -> tuple[KnownModel | None, str]:
    """Return the model that a net may be, and the reason: its layers, or its file's name if the layers allow it."""
    alike = assumed(text)
    if named is not None:
        if named.builder and alike and named.builder == alike.builder:
            return named, "the net's layers and the file's name"
        if not named.builder and not alike and named.preprocessing and named.preprocessing.size == size:
            return named, "the file's name"
    return alike, "the net's layers" if alike else ""
