"""Every row there is, in the order in which they are played."""

from __future__ import annotations

from tests.faults import receiver_rows, worker_rows
from tests.faults.row import Row

ROWS: list[Row] = [*receiver_rows.ROWS, *worker_rows.ROWS]
