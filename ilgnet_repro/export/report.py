"""What `convert` reports: the files that it wrote, and what their verification found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..about import Source
from ..files import parse_json
from .quantization_deviation import Deviation
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
    deviations: tuple[Deviation, ...] = ()  # of quantized weights, per output

    @property
    def is_verified(self) -> bool:
        """Whether every verified file returned the original's outputs."""
        return all(check.is_equal for check in self.verified)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            **asdict(self),
            "source": self.source.to_json() if self.source else None,
            "preprocessing": parse_json(self.preprocessing) if self.preprocessing else None,
            "verified": [{**asdict(check), "equal": check.is_equal} for check in self.verified],
        }
