"""The report: a run directory's rows as one self-contained HTML page that opens offline.

It reads files and imports nothing else of galvanic, so that a run made elsewhere, or years ago, can still be shown.
"""

from galvanic.report.page import write

__all__ = ["write"]
