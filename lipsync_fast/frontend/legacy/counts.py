# SPDX-License-Identifier: Apache-2.0
"""What the statistics of the old protocols tell: of one front process, since it began."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class ModelCounts:
    """Pictures made of one avatar, and how long they took, in milliseconds."""

    requests: int = 0
    total_ms: float = 0.0
    least_ms: float = 0.0
    most_ms: float = 0.0

    @property
    def average_ms(self) -> float:
        """0 before the first."""
        return self.total_ms / self.requests if self.requests else 0.0

    def add(self, milliseconds: float) -> None:
        """One more picture."""
        self.least_ms = min(self.least_ms, milliseconds) if self.requests else milliseconds
        self.most_ms = max(self.most_ms, milliseconds)
        self.requests += 1
        self.total_ms += milliseconds


@dataclass
class LegacyCounts:
    """Requests of all old clients; ``models`` has an entry for each avatar that was used."""

    binary: int = 0
    json: int = 0
    all: ModelCounts = field(default_factory=ModelCounts)
    models: dict[str, ModelCounts] = field(default_factory=dict)

    def made(self, avatar: str, milliseconds: float) -> None:
        """A picture of an avatar that exists was made."""
        self.all.add(milliseconds)
        self.models.setdefault(avatar, ModelCounts()).add(milliseconds)

    def model(self, avatar: str) -> ModelCounts:
        """Those of an avatar."""
        return self.models.get(avatar, ModelCounts())
