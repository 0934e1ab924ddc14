"""One self-contained HTML page that shows what a run did, built from the run directory alone."""

from launcher.report.page import write_report

__all__ = ["write_report"]
