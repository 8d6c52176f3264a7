"""A listener that remembers."""

from __future__ import annotations

from datadream.runtime.progress import Progress


class Heard(list[Progress]):
    """All that was told of a stage, in order."""

    def hear(self, progress: Progress) -> None:
        self.append(progress)
