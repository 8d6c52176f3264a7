"""What the papers report: every table with its rows, and how each is run here. Imports nothing heavy."""

from datadream.paper.figures import PaperSet, Published, Row, Table, load_sets, load_tables

__all__ = ["PaperSet", "Published", "Row", "Table", "load_sets", "load_tables"]
