"""Two sets of pairs as one."""

from __future__ import annotations

import dataclasses

from jaxfuse.data.pairs import DataError, Pair, Pairs


@dataclasses.dataclass(frozen=True)
class JoinedPairs:
    """The pairs of one set, then those of another. Raises DataError for a stem that is in both."""

    first: Pairs
    second: Pairs

    def __post_init__(self) -> None:
        known = {self.first.stem(i) for i in range(len(self.first))}
        for i in range(len(self.second)):
            if self.second.stem(i) in known:
                raise DataError(
                    f"{self.second.stem(i)}: in both data.target and data.beside: name each pair "
                    "in one of them, by a split"
                )

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def at(self, index: int) -> tuple[Pairs, int]:
        """The set that a pair is in, and its place there."""
        if not 0 <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        within = index - len(self.first)
        return (self.first, index) if within < 0 else (self.second, within)

    def stem(self, index: int) -> str:
        pairs, i = self.at(index)
        return pairs.stem(i)

    def size(self, index: int) -> tuple[int, int]:
        pairs, i = self.at(index)
        return pairs.size(i)

    def __getitem__(self, index: int) -> Pair:
        pairs, i = self.at(index)
        return pairs[i]
