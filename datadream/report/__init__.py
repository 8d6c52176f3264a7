"""What came out of a run: its records, its table for the terminal and its page. Needs neither Ray nor torch."""

from datadream.report.images import images_text
from datadream.report.page import write_report
from datadream.report.records import records, summarise, unique
from datadream.report.text import text_table

__all__ = ["images_text", "records", "summarise", "text_table", "unique", "write_report"]
