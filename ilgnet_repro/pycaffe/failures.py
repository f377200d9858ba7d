"""Exceptions of this package that are also of the type that pycaffe raises, so that scripts catch either."""

from __future__ import annotations

from ..errors import IlgnetError


class Failure(IlgnetError, RuntimeError):
    """A file that cannot be opened, or a call that does not suit the net."""


class UnknownLayer(IlgnetError, ValueError):
    """A layer name that the net does not have."""


class WrongCall(IlgnetError, TypeError):
    """Arguments that no form of the call takes."""
