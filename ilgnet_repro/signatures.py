"""Options passed on as ``**options``, shown by their names: for `help()` and completion."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def shows_options(options: type, source: Callable[..., Any]) -> Callable[[Function], Function]:
    """Show the keys of a TypedDict in the place of a function's ``**options``, with the defaults of ``source``."""

    def add(function: Function) -> Function:
        signature = inspect.signature(function)
        kept = [one for one in signature.parameters.values() if one.kind is not one.VAR_KEYWORD]
        named = inspect.signature(source).parameters
        shown = [named[name].replace(kind=inspect.Parameter.KEYWORD_ONLY) for name in options.__annotations__]
        vars(function)["__signature__"] = signature.replace(parameters=[*kept, *shown])
        return function

    return add
