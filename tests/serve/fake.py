"""A small program in the place of vLLM's server."""

from __future__ import annotations

import sys

from earlytom.network import listen
from earlytom.serve import Launch

FAKE = """
import http.server, os, pathlib, signal, sys
mode = sys.argv[-1]
pathlib.Path("folder").write_text(os.environ["PROMETHEUS_MULTIPROC_DIR"])
if mode == "broken":
    print("no memory for this model")
    sys.exit(3)
deaf = mode == "deaf"  # else it hears SIGINT also where tests run in the background of a shell
signal.signal(signal.SIGINT, signal.SIG_IGN if deaf else signal.default_int_handler)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.server.asked = True
port = int(sys.argv[sys.argv.index("--port") + 1])
server = http.server.HTTPServer(("127.0.0.1", port), Handler)
server.asked = False
try:
    while not (server.asked and mode in ("ends", "interrupts")):
        server.handle_request()
    if mode == "interrupts":
        os.kill(os.getppid(), signal.SIGINT)
        signal.pause()
except KeyboardInterrupt:
    sys.exit(5)
"""


def launch(mode: str) -> Launch:
    """Return how to start it on a free port.

    Args:
        mode: ``fine``; ``broken``: ends with code 3 at once; ``deaf``: does not hear SIGINT;
            ``ends``: with code 0 once it was asked for its health; ``interrupts``: sends SIGINT to
            its parent then.
    """
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
    command = (sys.executable, "-c", FAKE, "--port", str(port), mode)
    return Launch(command, {}, "127.0.0.1", port, "fake", "none", 1)
