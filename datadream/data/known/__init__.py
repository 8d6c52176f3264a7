"""The data sets of the paper: what each one is, and how it is read in the layout in which it is downloaded."""

from datadream.data.known.given_shots import given_shots
from datadream.data.known.listing import list_known
from datadream.data.known.sets import GUIDE, KNOWN, KnownSet

__all__ = ["GUIDE", "KNOWN", "KnownSet", "given_shots", "list_known"]
