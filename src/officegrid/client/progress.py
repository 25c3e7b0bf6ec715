"""Progress for people: a live bar on a terminal, plain lines in a log. All on stderr."""

from __future__ import annotations

import shutil
import time
from types import TracebackType
from typing import Self

import click

from officegrid.client.data import DataProgress
from officegrid.client.images import PushProgress
from officegrid.client.submit import UploadProgress
from officegrid.client.text import bytes_text, on_terminal, share
from officegrid.core.quantities import duration_text
from officegrid.wire.jobs import JobView

PLAIN_EVERY_S = 5.0
BAR_CELLS = 20


def bar(fraction: float, cells: int = BAR_CELLS) -> str:
    full = max(0, min(cells, int(fraction * cells)))
    return "█" * full + "░" * (cells - full)


class _Line:
    """One line that is rewritten on a terminal; in a log, a line every few seconds."""

    def __init__(self) -> None:
        self._live = on_terminal()
        self._last = 0.0
        self._shown = ""
        self._open = False

    def show(self, live: str, plain: str, *, last: bool = False) -> None:
        if self._live:
            # A line that wraps could not be rewritten.
            room = shutil.get_terminal_size().columns - 1
            click.echo(f"\r\x1b[2K{live[:room]}", nl=last, err=True)
            self._open = not last
        elif (last or time.monotonic() - self._last >= PLAIN_EVERY_S) and plain != self._shown:
            self._last = time.monotonic()
            self._shown = plain
            click.echo(plain, err=True)

    def end(self) -> None:
        if self._open:
            click.echo("", err=True)
            self._open = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()


class UploadLine(_Line):
    """Shows an `UploadProgress`."""

    def __call__(self, progress: UploadProgress) -> None:
        total = progress.bytes_total or 1
        sent = f"{bytes_text(progress.bytes_sent)} sent"
        noun = "record" if progress.records == 1 else "records"
        text = f"{progress.records:,} {noun}, {bytes_text(progress.bytes_read)} read, {sent}"
        live = f"upload  {bar(progress.bytes_read / total)} {text}"
        self.show(live, f"upload: {text}", last=progress.done)


class DataLine(_Line):
    """Shows a `DataProgress`."""

    def __call__(self, progress: DataProgress) -> None:
        total = progress.bytes_total or 1
        read = f"{bytes_text(progress.bytes_read)} of {bytes_text(progress.bytes_total)}"
        text = f"{read} looked at, {bytes_text(progress.bytes_sent)} sent"
        live = f"push  {bar(progress.bytes_read / total)} {text}"
        self.show(live, f"push: {text}", last=progress.done)


class PushLine(_Line):
    """Shows a `PushProgress`."""

    def __call__(self, progress: PushProgress) -> None:
        total = progress.total_bytes or 1
        whole = bytes_text(progress.total_bytes)
        if progress.checked_bytes < progress.total_bytes:
            verb, part = "check", progress.checked_bytes
            text = f"{bytes_text(part)} of {whole} read"
        else:
            verb, part = "push", progress.stored_bytes
            sent = bytes_text(progress.sent_bytes)
            text = f"{bytes_text(part)} of {whole} are there, {sent} sent"
        live = f"{verb:<6}  {bar(part / total)} {text}"
        self.show(live, f"{verb}: {text}", last=progress.done)


class JobLine(_Line):
    """Shows a `JobView` as it changes."""

    def __call__(self, view: JobView, *, last: bool = False) -> None:
        processed = view.done + view.quarantined + view.running_done
        fraction = processed / view.total if view.total else float(last)
        words = [f"{share(processed, view.total):>6}  {processed:,}/{view.total:,}"]
        if view.state != "running":
            words.append(view.state + (f" ({view.reason})" if view.reason else ""))
        elif view.records_per_s:
            words.append(f"{view.records_per_s:,.0f}/s")
        if view.eta_s is not None:
            words.append(f"{duration_text(view.eta_s)} left")
        if view.quarantined:
            words.append(f"{view.quarantined:,} quarantined")
        if view.units_running:
            words.append(f"{view.units_running} units")
        text = "  ".join(words)
        self.show(f"{view.name}  {bar(fraction)} {text}", f"{view.name}: {text}", last=last)
