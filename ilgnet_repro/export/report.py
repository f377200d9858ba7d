"""What a conversion did, as one value: for the terminal, for programs, and for the file's reader."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..about import Source
from .deviation import Deviation
from .verify import Verification


@dataclass(frozen=True)
class Written:
    """One file that a conversion wrote."""

    format: str
    path: str
    bytes: int
    seconds: float


@dataclass(frozen=True)
class ConversionReport:
    """The result of `convert`."""

    source: Source | None
    net: str
    prototxt: str
    phase: str
    layers: int
    parameters: int
    outputs: tuple[str, ...]
    extra_layers: tuple[str, ...]  # in the file but not in the net; Caffe ignores them too
    notes: tuple[str, ...]
    written: tuple[Written, ...]
    verified: tuple[Verification, ...]
    preprocessing: str | None
    deviations: tuple[Deviation, ...] = ()  # what reduced weights cost, for each output

    @property
    def is_verified(self) -> bool:
        """Whether every written file that was run gave the original's outputs."""
        return all(check.is_equal for check in self.verified)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            **asdict(self),
            "source": self.source.to_json() if self.source else None,
            "verified": [{**asdict(check), "equal": check.is_equal} for check in self.verified],
        }
