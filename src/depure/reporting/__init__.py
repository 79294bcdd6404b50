"""Reports: run folders as one self-contained HTML page, figures for papers, contact sheets."""

from depure.reporting.build import report, save_figures
from depure.reporting.contact import contact_sheet

__all__ = ["contact_sheet", "report", "save_figures"]
