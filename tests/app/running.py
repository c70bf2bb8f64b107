"""The page served in this process, and users who talk to it as Gradio's script does."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from earlytom.app.desk import Desk
from earlytom.app.server import build_app, upload_folder


@contextmanager
def serving(desk: Desk, max_upload_mb: int = 1) -> Iterator[tuple[str, Path]]:
    """Serve in a thread; give the address and the folder of uploads."""
    import uvicorn

    with upload_folder() as folder:
        app = build_app(desk, folder, max_upload_mb)
        server = uvicorn.Server(
            uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=1)
        )
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        end = time.monotonic() + 60
        while not server.started and time.monotonic() < end:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}", folder
        server.should_exit = True
        thread.join(20)


class User:
    """One session: events of the page by element and trigger."""

    def __init__(self, address: str) -> None:
        import httpx

        self.http = httpx.Client(base_url=address, timeout=120, trust_env=False)
        self.session = uuid.uuid4().hex
        config = self.http.get("/config").raise_for_status().json()
        names = {c["id"]: c["props"].get("elem_id") for c in config["components"]}
        self.events = {
            (names.get(target), kind): event["id"]
            for event in config["dependencies"]
            for target, kind in event["targets"]
        }

    def send(self, element: str, kind: str, data: list, event_data: object = None) -> list | None:
        """Trigger an event and wait; None if Gradio refused it."""
        body = {
            "data": data,
            "event_data": event_data,
            "fn_index": self.events[element, kind],
            "session_hash": self.session,
        }
        self.http.post("/gradio_api/queue/join", json=body).raise_for_status()
        where = f"/gradio_api/queue/data?session_hash={self.session}"
        with self.http.stream("GET", where) as stream:
            for line in stream.iter_lines():
                if not line.startswith("data:"):
                    continue
                message = json.loads(line[5:])
                if message["msg"] == "process_completed":
                    return message["output"].get("data") if message["success"] else None
        raise AssertionError("no answer")

    def upload(self, path: Path) -> dict:
        """Upload a file and return what Gradio's components call it."""
        with path.open("rb") as file:
            answer = self.http.post("/gradio_api/upload", files={"files": (path.name, file)})
        (place,) = answer.raise_for_status().json()
        return file_data(place)

    def ask(self, question: object, method: object, ratio: object, file: object = None) -> str:
        """Ask about the clip chosen last, or a file."""
        answer = self.send("ask", "click", [None, file, question, method, ratio])
        return "" if answer is None else answer[0]


def file_data(place: str) -> dict:
    """Return a file on the server as data of a component."""
    return {"path": place, "meta": {"_type": "gradio.FileData"}}
