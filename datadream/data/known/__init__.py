"""The data sets of the paper: what each one is, and how it is read in the layout in which it is downloaded."""

from datadream.data.known.listing import list_known
from datadream.data.known.sets import KNOWN, KnownSet

__all__ = ["KNOWN", "KnownSet", "list_known"]
