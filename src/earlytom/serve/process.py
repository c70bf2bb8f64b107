"""A server as a child process: started, waited for, told to stop."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import IO, Any

from earlytom.errors import EarlyTomError
from earlytom.network import open_url
from earlytom.serve.command import Launch

_METRICS = "PROMETHEUS_MULTIPROC_DIR"
_EVERY = 0.25  # seconds between two looks
_GRACE = 20.0  # seconds that a server has to stop


class Server:
    """Runs a server, in a process group of its own.

    A folder in which its processes share their counters lives as long as it does. Use as a context
    manager: at the end the server is stopped, in the worst case killed with all its processes.
    """

    def __init__(self, launch: Launch, log: int | IO[Any] | None = None) -> None:
        """Take what to start.

        Args:
            launch: what to start.
            log: file or descriptor that gets all the server writes; None: where this process does.
        """
        self.launch = launch
        self._log = log
        self._child: subprocess.Popen[bytes] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._asked = 0

    def __enter__(self) -> Server:
        self._folder = tempfile.TemporaryDirectory(
            prefix="earlytom-serve-", ignore_cleanup_errors=True
        )
        environment = {**self.launch.environment, **os.environ, _METRICS: self._folder.name}
        try:
            self._child = subprocess.Popen(
                self.launch.command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                start_new_session=True,  # Ctrl-C reaches it once, from here
            )
        except OSError as e:
            self._folder.cleanup()
            raise EarlyTomError(f"cannot start the server: {e}") from e
        return self

    def __exit__(self, *_: object) -> None:
        child = self._process()
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_GRACE)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)  # what is left of its processes
        child.wait()
        if self._folder is not None:
            self._folder.cleanup()

    def _process(self) -> subprocess.Popen[bytes]:
        if self._child is None:
            raise EarlyTomError("the server was not started")
        return self._child

    @property
    def pid(self) -> int:
        """Process id, and that of its group."""
        return self._process().pid

    @property
    def code(self) -> int | None:
        """Exit code as a shell would give it, None while it runs."""
        code = self._process().poll()
        return 128 - code if code is not None and code < 0 else code

    @property
    def stopping(self) -> bool:
        """Whether it was told to stop."""
        return self._asked > 0

    def wait_ready(
        self, tell: Callable[[float], object] | None = None, timeout: float | None = None
    ) -> bool:
        """Wait until the server answers requests; False if it ended before.

        Args:
            tell: called with the seconds waited, again and again.
            timeout: seconds; None: as long as it takes.

        Raises:
            EarlyTomError: not ready within ``timeout``.
        """
        start = time.monotonic()
        while self.code is None:
            if self._healthy():
                return True
            waited = time.monotonic() - start
            if timeout is not None and waited > timeout:
                raise EarlyTomError(f"the server was not ready after {timeout:g} seconds")
            if tell is not None:
                tell(waited)
            time.sleep(_EVERY)
        return False

    def _healthy(self) -> bool:
        try:
            with open_url(self.launch.url + "/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def wait(self) -> int:
        """Wait until it ends, and return its exit code."""
        while self.code is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process().wait(1)  # signals are handled in between
        return int(self.code)

    def stop(self, number: int) -> None:
        """Pass a signal on; the second one kills all its processes."""
        self._asked += 1
        with contextlib.suppress(ProcessLookupError):
            if self._asked == 1:
                self._process().send_signal(number)
            else:
                os.killpg(self.pid, signal.SIGKILL)

    @contextlib.contextmanager
    def forwarding(self) -> Iterator[None]:
        """Pass SIGINT and SIGTERM of this process on to the server while the context is open."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {n: signal.signal(n, lambda got, _: self.stop(got)) for n in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
