"""A published dataset reaches a server that speaks the Hub's protocol, whole and in one commit."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest

from datadream.cli import main
from datadream.config import ExperimentConfig
from datadream.run.layout import CONFIG, DATASET, DatasetMarker
from datadream.run.store import RunStore

FILES = {
    "README.md": b"---\ntags: [synthetic]\n---\n",
    "data/train-00000-of-00002.parquet": b"PAR1 one",
    "data/train-00001-of-00002.parquet": b"PAR1 two",
}


class Hub(ThreadingHTTPServer):
    """Keeps what it is sent; a token other than `good` is refused."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.made: list[dict] = []
        self.commits: list[dict[str, bytes]] = []
        self.removed: list[str] = []


class Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.headers["Authorization"] != "Bearer good":
            return self._answer(401, {"error": "Invalid username or password."})
        assert self.path.startswith("/api/datasets/me/digits/tree/main")
        there = ["README.md", "data/train-00000-of-00001.parquet", "data/train-00000-of-00002.parquet", "other.txt"]
        return self._answer(200, [{"type": "file", "path": path, "size": 1, "oid": "0"} for path in there])

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Authorization"] != "Bearer good":
            return self._answer(401, {"error": "Invalid username or password."})
        if self.path == "/api/repos/create":
            self.server.made.append(json.loads(body))
            return self._answer(200, {"url": f"{huggingface_hub.constants.ENDPOINT}/datasets/me/digits"})
        if self.path == "/api/datasets/me/digits/preupload/main":
            files = json.loads(body)["files"]
            modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
            return self._answer(200, {"files": modes})
        if self.path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        assert self.path == "/api/datasets/me/digits/commit/main"
        lines = [json.loads(line) for line in body.splitlines()]
        files = [line["value"] for line in lines if line["key"] == "file"]
        self.server.removed += [line["value"]["path"] for line in lines if line["key"] == "deletedFile"]
        self.server.commits.append({file["path"]: base64.b64decode(file["content"]) for file in files})
        return self._answer(
            200, {"commitUrl": f"{huggingface_hub.constants.ENDPOINT}/datasets/me/digits/commit/1", "commitOid": "1"}
        )

    def _answer(self, status: int, value: dict) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch):
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", "good")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(params=["local", "memory"])
def run(request, tmp_path) -> str:
    store = RunStore(str(tmp_path / "run") if request.param == "local" else f"memory://{tmp_path.name}/run")
    for name, data in FILES.items():
        store.write_bytes(f"dataset/{name}", data)
    shards = [name for name in FILES if name.endswith(".parquet")]
    marker = DatasetMarker(format="parquet", n_images=2, class_names=("cat",), shards=shards)
    store.write_json(DATASET, marker.to_json())
    return store.url


def test_shards_and_card_arrive_in_one_commit(hub, run, capsys):
    assert main(["push", run, "me/digits"]) == 0
    assert hub.commits == [FILES]
    # What another dataset left there would be read as part of this one.
    assert hub.removed == ["data/train-00000-of-00001.parquet"]
    assert (hub.made[0]["name"], hub.made[0]["type"], hub.made[0]["visibility"]) == ("digits", "dataset", "private")
    assert capsys.readouterr().out.strip().endswith("/datasets/me/digits")
    assert main(["push", run, "me/digits", "--public"]) == 0
    assert hub.made[1]["visibility"] == "public"


def test_images_of_another_run_are_its_dataset(hub, run, tmp_path, capsys):
    for name, changes in (("taker", {"images_from": run}), ("table", {"grid": {"seeds": [0, 1]}})):
        config = ExperimentConfig().updated(changes).model_dump(mode="json")
        RunStore(str(tmp_path / name)).write_json(CONFIG, {"config": config, "versions": {}})
    assert main(["push", str(tmp_path / "taker"), "me/digits"]) == 0
    assert hub.commits == [FILES]
    assert main(["push", str(tmp_path / "table"), "me/digits"]) == 2
    assert "A table of runs has them in the folders of its cells/." in capsys.readouterr().err


def test_what_the_hub_refuses_is_told_in_one_line(hub, run, tmp_path, capsys, monkeypatch):
    assert main(["push", run, "not/a/name"]) == 2
    assert "'not/a/name' is no name on the Hub: Repo id must be" in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", "bad")
    assert main(["push", run, "me/digits"]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "the Hub refuses 'me/digits': Invalid username or password. Give OWNER/NAME, and a token" in line
    assert main(["push", str(tmp_path / "nothing"), "me/digits"]) == 2
    assert "has no dataset to push" in capsys.readouterr().err
    assert hub.commits == []
    hub.server_close()
    assert main(["push", run, "me/digits"]) == 1
    assert "the Hub cannot be reached: " in capsys.readouterr().err
