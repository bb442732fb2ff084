"""The report: one self-contained HTML file about one run or several."""

from oblivion.report.page import build_report, write_report

__all__ = ["build_report", "write_report"]
