"""The part of the Hugging Face hub that its libraries ask for, on the loopback address, and files as it holds them."""

import hashlib
import io
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

SPLITS = ("train", "validation", "test")
COMMIT = 40 * "a"
LINES = [
    "", " = Alpha = \n", "", " First = one . \n", "", " = = Part = = \n", "", " Second . \n", " = = = Detail = = = \n",
    " Third . \n", "", " = Beta = Gamma = \n", "", " = = Empty = = \n", " = Delta = \n", " Fourth . \n",
]  # fmt: skip


def jsonl(*rows: object) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(**columns: object) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


WIKITEXT = "---\nconfigs:\n- config_name: wikitext-2-raw-v1\n  data_files:\n" + "".join(
    f"  - split: {split}\n    path: data/{split}-*\n" for split in SPLITS
)
# {id: {path: content}}, datasets and a model.
REPOSITORIES: dict[str, dict[str, bytes]] = {
    "Salesforce/wikitext": {
        "README.md": WIKITEXT.encode() + b"---\n",
        **{f"data/{split}-0.parquet": parquet(text=[*LINES, f" {split} \n"]) for split in SPLITS},
    },
    "codeparrot/codeparrot-clean-valid": {"file.json": jsonl(*({"content": f"  def f{n}()"} for n in range(5)))},
    "CShorten/ML-ArXiv-Papers": {"ML.csv": b',title,abstract\n0,On A,"  The problem\n"\n1,,\n2,On B,We\n'},
    "roneneldan/TinyStories": {"data/train-0.parquet": parquet(text=["Once", "", "upon"])},
    "open-web-math/open-web-math": {"data/train-0.parquet": parquet(words=["no text column"])},
    "owner/columns": {"data/train-0.parquet": parquet(a=["x"], b=["y"])},
    "owner/held-out": {"data/test-0.parquet": parquet(text=["only a test"])},
}


class Handler(BaseHTTPRequestHandler):
    """Answers as the hub does."""

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: object) -> None:
        self.send_response(status)
        for name, value in {"Content_Length": len(body), "X_Repo_Commit": COMMIT, **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        address = r"/(api/)?(?:datasets/|models/)?([^/]+/[^/]+)/?(revision|tree|resolve)?(?:/[^/]+/?(.*))?"
        found = re.fullmatch(address, path)
        files = REPOSITORIES.get(found[2]) if found else None
        if files is None:
            return self.answer(404, X_Error_Code="RepoNotFound")
        if found[3] == "tree":
            return self.answer(200, json.dumps(self.tree(files, found[4] + "/" if found[4] else "")).encode())
        if found[1]:
            siblings = [{"rfilename": name} for name in files]
            return self.answer(200, json.dumps({"id": found[2], "sha": COMMIT, "siblings": siblings}).encode())
        if found[4] not in files:
            return self.answer(404, X_Error_Code="EntryNotFound")
        body = files[found[4]]
        headers = {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "Accept_Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked:
            start, end = int(asked[1]), min(int(asked[2] or len(body)) + 1, len(body))
            return self.answer(206, body[start:end], Content_Range=f"bytes {start}-{end - 1}/{len(body)}", **headers)
        self.answer(200, body, **headers)

    do_HEAD = do_GET

    def tree(self, files: dict[str, bytes], folder: str) -> list[dict]:
        entries = {}
        for path, body in files.items():
            if path.startswith(folder):
                name, *below = path.removeprefix(folder).split("/")
                kind = {"type": "directory"} if below else {"type": "file", "size": len(body)}
                entries[name] = {"path": folder + name, "oid": hashlib.sha1(body).hexdigest(), **kind}
        return list(entries.values())


@contextmanager
def hub_server() -> Iterator[str]:
    """Serve `REPOSITORIES` until the end of the context; yields the address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
