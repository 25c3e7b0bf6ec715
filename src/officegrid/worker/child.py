"""One process of a user's program: started, fed, read, watched and killed."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from officegrid.worker.limits import MemoryWatch, limit_process, process_tree, warden
from officegrid.worker.runner import Stopped

READ_BYTES = 1 << 18
PIPE_BYTES = 1 << 20
TAIL_BYTES = 4096
TICK_S = 0.1


class Child:
    """A process that leads its own group, with three pipes: to it, from it, and its messages.

    `own_pipes` False connects them to stdin, stdout and stderr. True leaves stdin empty and sends
    both stdout and stderr to the messages; `command` is then called with the numbers of the two
    descriptors that the child inherits for talking to its parent. Raises OSError if the program
    cannot be started.
    """

    def __init__(
        self,
        command: Callable[[int, int], Sequence[str]],
        *,
        cwd: Path,
        env: Mapping[str, str],
        memory_mb: int,
        own_pipes: bool,
        inherit: Sequence[int] = (),
    ) -> None:
        warden.start()
        to_child, self._write_fd = os.pipe()
        self._read_fd, from_child = os.pipe()
        self._error_fd, messages = os.pipe()
        passed = (to_child, from_child, *inherit) if own_pipes else tuple(inherit)
        try:
            self._process = subprocess.Popen(
                command(to_child, from_child),
                cwd=cwd,
                env=dict(env),
                stdin=subprocess.DEVNULL if own_pipes else to_child,
                stdout=messages if own_pipes else from_child,
                stderr=messages,
                pass_fds=passed,
                process_group=0,
            )
        except BaseException:
            for fd in (self._write_fd, self._read_fd, self._error_fd):
                os.close(fd)
            raise
        finally:
            for fd in (to_child, from_child, messages):
                os.close(fd)
        self.pid = self._process.pid
        warden.guard(self.pid)
        if not own_pipes:  # the harness limits itself
            limit_process(self.pid, memory_mb)
        self._lock = threading.Lock()
        self._reaped = False
        self.watch = MemoryWatch(self.pid, memory_mb)
        self._start_streams()

    def _start_streams(self) -> None:
        self.received = bytearray()
        self.ended = False  # the child has closed its output
        self.last_progress = time.monotonic()
        self._tail = bytearray()
        self._to_send: deque[memoryview] = deque()
        self._close_when_sent = False
        self._selector = selectors.DefaultSelector()
        for fd in (self._write_fd, self._read_fd, self._error_fd):
            os.set_blocking(fd, False)
        with contextlib.suppress(OSError):
            _grow_pipe(self._write_fd)
            _grow_pipe(self._read_fd)
        self._selector.register(self._read_fd, selectors.EVENT_READ)
        self._selector.register(self._error_fd, selectors.EVENT_READ)
        self._exit_fd = os.pidfd_open(self.pid)  # readable at the end of the process: wakes `step`
        self._selector.register(self._exit_fd, selectors.EVENT_READ)

    def send(self, data: Iterable[bytes], *, close: bool = False) -> None:
        """Queue bytes for the child; `step` writes them. `close` ends its input after them."""
        self._to_send.extend(memoryview(part) for part in data if part)
        self._close_when_sent = close
        if self._to_send:
            self._selector.register(self._write_fd, selectors.EVENT_WRITE)
        elif close:
            self._end_input(registered=False)

    def step(self, wait_s: float = TICK_S) -> None:
        """Move bytes in all directions; returns as soon as any moved, or after `wait_s`."""
        for key, _ in self._selector.select(wait_s):
            if key.fd == self._write_fd:
                self._write()
            elif key.fd == self._read_fd:
                self._read()
            elif key.fd == self._error_fd:
                self._drain_messages()
            else:
                self._selector.unregister(self._exit_fd)

    def _write(self) -> None:
        try:
            sent = os.write(self._write_fd, self._to_send[0][:PIPE_BYTES])
        except BlockingIOError:
            return
        except BrokenPipeError:  # the child wants no more input
            self._to_send.clear()
            self._end_input(registered=True)
            return
        self.last_progress = time.monotonic()
        rest = self._to_send.popleft()[sent:]
        if rest:
            self._to_send.appendleft(rest)
        elif not self._to_send:
            if self._close_when_sent:
                self._end_input(registered=True)
            else:
                self._selector.unregister(self._write_fd)

    def _end_input(self, registered: bool) -> None:
        if self._write_fd < 0:
            return
        if registered:
            self._selector.unregister(self._write_fd)
        os.close(self._write_fd)
        self._write_fd = -1

    def _read(self) -> None:
        try:
            data = os.read(self._read_fd, READ_BYTES)
        except BlockingIOError:
            return
        if data:
            self.received += data
            self.last_progress = time.monotonic()
        else:
            self.ended = True
            self._selector.unregister(self._read_fd)

    def _drain_messages(self) -> None:
        try:
            data = os.read(self._error_fd, READ_BYTES)
        except BlockingIOError:
            return
        if data:
            self._tail = (self._tail + data)[-TAIL_BYTES:]
        else:
            self._selector.unregister(self._error_fd)

    def messages(self) -> str:
        """The last 4 KB that the program printed for people."""
        return self._tail.decode(errors="replace").strip()

    def forget_messages(self) -> None:
        self._tail.clear()

    def exited(self) -> int | None:
        """The exit code (negative: the signal) once the process has ended; it is not reaped yet,
        so that its process group cannot be mistaken for another."""
        if self._reaped:
            return self._process.returncode
        found = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if found is None:
            return None
        status = found.si_status
        return status if found.si_code == os.CLD_EXITED else -status

    def drain(self) -> None:
        """Read what is left in the pipes, without waiting for processes that keep them open."""
        while self._selector.get_map():
            readable = (self._read_fd, self._error_fd)
            ready = [key.fd for key, _ in self._selector.select(0) if key.fd in readable]
            if not ready:
                return
            for fd in ready:
                self._read() if fd == self._read_fd else self._drain_messages()

    def kill(self) -> None:
        """Kill the process, its group, and descendants that left the group. Any thread."""
        with self._lock:
            if self._reaped:
                return
            strays = process_tree(self.pid)[1:]
            self._kill_group()
            for stray in strays:
                with contextlib.suppress(Exception):
                    stray.kill()

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def finish(self) -> int:
        """Kill what is left of the group, reap the process, close the pipes; the exit code."""
        if self._reaped:
            return self._process.returncode
        if self.exited() is None:
            self.kill()
        with self._lock:
            self._kill_group()
            warden.release(self.pid)
            self._reaped = True
            code = self._process.wait()
        self.drain()
        self._selector.close()
        for fd in (self._write_fd, self._read_fd, self._error_fd, self._exit_fd):
            if fd >= 0:
                os.close(fd)
        return code


class ChildHolder:
    """Holds the one child of a runner, which `stop` may kill from any thread."""

    def __init__(self) -> None:
        self._child: Child | None = None
        self._stopped = False
        self._child_lock = threading.Lock()

    def stop(self) -> None:
        """Kill the program at once; nothing can be started any more. Any thread."""
        with self._child_lock:
            self._stopped = True
            if self._child is not None:
                self._child.kill()

    def _begin_child(self, start: Callable[[], Child]) -> Child:
        with self._child_lock:
            if self._stopped:
                raise Stopped("The program was stopped.")
            self._child = start()
            return self._child

    def _end_child(self) -> int:
        """Kill and reap the child, if there is one; its exit code."""
        with self._child_lock:
            child, self._child = self._child, None
        return child.finish() if child is not None else 0

    def _check_stopped(self) -> None:
        if self._stopped:
            self._end_child()
            raise Stopped("The program was stopped.")


def _grow_pipe(fd: int) -> None:
    import fcntl

    fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def describe_exit(code: int) -> str:
    """How a process ended, as the end of a sentence that begins with "the program"."""
    if code >= 0:
        return f"ended with exit code {code}"
    number = -code
    known: dict[int, str] = {
        signal.SIGSEGV: "segmentation fault",
        signal.SIGABRT: "abort",
        signal.SIGBUS: "bus error",
        signal.SIGFPE: "arithmetic error",
        signal.SIGILL: "illegal instruction",
        signal.SIGKILL: "kill, as the system does when memory runs out",
        signal.SIGPIPE: "broken pipe",
        signal.SIGTERM: "termination",
    }
    meaning = known.get(number) or _signal_name(number)
    return f"was killed by signal {number} ({meaning})"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
