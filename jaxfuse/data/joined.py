"""Two sets of pairs as one."""

from __future__ import annotations

import dataclasses

from jaxfuse.data.pairs import Pair, Pairs


@dataclasses.dataclass(frozen=True)
class JoinedPairs:
    """The pairs of one set, then those of another, whose names begin "beside/"."""

    first: Pairs
    second: Pairs

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
        # Sets often number their pairs alike.
        return pairs.stem(i) if pairs is self.first else f"beside/{pairs.stem(i)}"

    def size(self, index: int) -> tuple[int, int]:
        pairs, i = self.at(index)
        return pairs.size(i)

    def __getitem__(self, index: int) -> Pair:
        pairs, i = self.at(index)
        return pairs[i]._replace(stem=self.stem(index))
