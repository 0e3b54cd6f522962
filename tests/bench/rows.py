"""Every benchmark, in the order of the page."""

from . import (
    rows_audio,
    rows_batch,
    rows_daemon,
    rows_export,
    rows_feed,
    rows_health,
    rows_neighbour,
    rows_plugins,
    rows_process,
    rows_serving,
    rows_silero,
    rows_triton,
)
from .report import Row

ROWS: tuple[Row, ...] = (
    *rows_feed.ROWS,
    *rows_silero.ROWS,
    *rows_export.ROWS,
    *rows_batch.ROWS,
    *rows_health.ROWS,
    *rows_plugins.ROWS,
    *rows_audio.ROWS,
    *rows_process.ROWS,
    *rows_daemon.ROWS,
    *rows_serving.ROWS,
    *rows_neighbour.ROWS,
    *rows_triton.ROWS,
)
