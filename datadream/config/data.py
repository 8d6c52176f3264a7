"""The photos."""

from __future__ import annotations

from pydantic import Field

from datadream.config.section import Section


class DataConfig(Section):
    """The photos."""

    source: str = "digits"
    """`digits` (scikit-learn's scanned handwriting) or an image folder: <root>/<class name>/*.jpg|png|webp, with
    optional train, val and test folders above the classes."""
    n_shots: int = Field(16, ge=1)
    """Real photos per class, K (paper: 1 to 16). Draws are nested: the 1-shot set is inside the 16-shot set."""
    prompt: str = "a photo of a {name}"
    """Prompt of a class, for training and for drawing (paper, section 3)."""
