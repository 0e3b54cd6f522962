"""Every benchmark, in the order of the page."""

from . import rows_batch, rows_feed, rows_process
from .report import Row

ROWS: tuple[Row, ...] = (*rows_feed.ROWS, *rows_batch.ROWS, *rows_process.ROWS)
