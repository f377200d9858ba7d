"""Exceptions of this package that are also of the type that pycaffe raises, so that scripts catch either."""

from __future__ import annotations

from ..errors import IlgnetError


class Failure(IlgnetError, RuntimeError):
    """A file that cannot be opened, or a call that does not suit the net."""


class UnknownLayer(IlgnetError, ValueError):
    """A layer name that the net does not have."""


class WrongCall(IlgnetError, TypeError):
    """Arguments that no form of the call takes."""


class WrongValue(IlgnetError, ValueError):
    """A value that pycaffe refuses with ValueError."""


class NoSuchField(IlgnetError, AttributeError):
    """A name that a message or a `NetSpec` does not have."""


class FailedCheck(IlgnetError, AssertionError):
    """What pycaffe checks by `assert`."""


class NoSuchBlob(IlgnetError, KeyError):
    """A blob name that a net does not have."""

    __str__ = Exception.__str__  # that of KeyError shows the message's repr
