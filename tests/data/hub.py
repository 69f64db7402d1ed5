"""The part of the Hugging Face hub that `datasets` asks for, on the loopback address, with its faults."""

import gzip
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parent.parent.parent
SPLITS = ("train", "validation", "test")
CONFIGS = ("wikitext-103-raw-v1", "wikitext-2-raw-v1")
LINES = [
    "", " = Alpha = \n", "", " First = one . \n", "", " = = Part = = \n", "", " Second . \n", " = = = Detail = = = \n",
    " Third . \n", "", " = Beta = Gamma = \n", "", " = = Empty = = \n", " = Delta = \n", " Fourth . \n",
]  # fmt: skip
LARGE = (".parquet", ".gz")  # kept outside of Git
CODE = [f"  def f{number}(): pass\n" for number in range(5)]


def jsonl(*rows: object) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(**columns: object) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def repositories(text: str) -> dict[str, dict[str, bytes]]:
    """Datasets in each layout of the presets, {id: {path: content}}, with documents that hold `text`."""
    code = [{"repo_name": "a/b", "content": line.replace("pass", text or "pass")} for line in CODE]
    return {
        "Salesforce/wikitext": {
            "README.md": "---\nconfigs:\n{}---\n".format(
                "".join(
                    f"- config_name: {config}\n  data_files:\n"
                    + "".join(f"  - split: {split}\n    path: {config}/{split}-*\n" for split in SPLITS)
                    for config in CONFIGS
                )
            ).encode(),
            **{
                f"{config}/{split}-00000-of-00001.parquet": parquet(text=[*LINES, f" {config} {split}{text} \n"])
                for config in CONFIGS
                for split in SPLITS
            },
        },
        "codeparrot/codeparrot-clean-valid": {
            "README.md": b"# Code of repositories\n",
            "file-000000000001.json.gz": gzip.compress(jsonl(*code), mtime=0),
        },
        "CShorten/ML-ArXiv-Papers": {
            "ML-Arxiv-Papers.csv": f',title,abstract\n0,On A,"  The problem\n"\n1,,\n2,On B,We{text}\n'.encode(),
        },
        "roneneldan/TinyStories": {
            "README.md": b"# Stories, some of them short\n",
            "data/train-00000-of-00002.parquet": parquet(text=["Once", "", "upon"]),
            "data/train-00001-of-00002.parquet": parquet(text=["a", f"time{text}"]),
            "data/validation-00000-of-00001.parquet": parquet(text=["Then"]),
        },
        "open-web-math/open-web-math": {"data/train-00000-of-00001.parquet": parquet(words=["no text column"])},
    }


# What goes wrong: a status; "hang" (no answer), "stall" (half of a file, then nothing), "cut" (half, then the end),
# "loop" (cut at each new try, which starts over); "trickle" (a byte now and then) and
# "headers" (so slow are they); "checksum" (other bytes), "size" (fewer) and "column" (other names of columns).
FAULTS = (
    "401", "403", "404", "429", "500", "hang", "stall", "cut", "loop", "trickle", "headers", "checksum", "column",
    "size",
)  # fmt: skip
TRICKLE_SECONDS = 1.5
# Where: at every address, at all but the one that is asked first, at the files with the data, or at a second such file.
PLACES = ("all", "later", "files", "second")


def token(fault: str = "none", place: str = "files", version: str = "a") -> str:
    """What a client says in HF_TOKEN to see a fault, and a version of the datasets.

    Faults that pass: "once" cuts a file the first time only, "slow" takes 8 seconds for a file.
    """
    return f"hf_{fault}_{place}_{version}"


class Hub:
    """A server of the versions of some datasets, {version: {id: {path: content}}}."""

    def __init__(self, versions: dict[str, dict[str, dict[str, bytes]]]):
        self.versions = versions
        self.cut: set[tuple] = set()  # what has been cut once
        self.closing = threading.Event()  # lets the threads that hang go


def renamed(path: str, body: bytes) -> bytes:
    """The data file with other names of its columns."""
    names = {"text": "tixt", "content": "contint", "abstract": "abstruct"}
    if path.endswith(".parquet"):
        table = pq.read_table(io.BytesIO(body))
        return parquet(**{names.get(name, name): table[name] for name in table.schema.names})
    data = gzip.decompress(body) if path.endswith(".gz") else body
    for before, after in names.items():
        data = data.replace(before.encode(), after.encode())
    return gzip.compress(data, mtime=0) if path.endswith(".gz") else data


def damaged(body: bytes) -> bytes:
    """As many bytes, sixteen of them different: in Parquet the start of the first page."""
    return body[:4] + bytes(byte ^ 0x55 for byte in body[4:20]) + body[20:]


def stated(path: str, body: bytes) -> dict[str, object]:
    """What the hub states of a file: Git's SHA-1 and the size; of large ones this is of the pointer in their place."""
    if not path.endswith(LARGE):
        return {"oid": hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest(), "size": len(body)}
    digest = hashlib.sha256(body).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(body)}\n".encode()
    lfs = {"oid": digest, "size": len(body), "pointerSize": len(pointer)}
    return {**stated("pointer", pointer), "size": len(body), "lfs": lfs}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: object) -> None:
        self.send_response(status)
        for name, value in {"Content_Length": len(body), "X_Repo_Commit": self.commit, **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        said = re.fullmatch("Bearer " + token("(.+)", "(.+)", "(.+)"), self.headers.get("Authorization", ""))
        self.fault, self.place, self.version = said.groups() if said else ("none", "files", "a")
        self.commit = 40 * ("c" if self.fault == "column" else self.version)
        path = unquote(urlsplit(self.path).path)
        if path == "/close":
            self.server.shutdown()
            self.server.server_close()
            return self.answer(200)
        for name, files in self.hub.versions[self.version].items():
            if match := re.fullmatch(f"/api/datasets/{name}(/revision/[^/]+)?", path):
                siblings = [{"rfilename": file} for file in files]
                info = {"id": name, "sha": self.commit, "private": False, "tags": [], "siblings": siblings}
                return self.fails("later" if match[1] else "all") or self.answer(200, json.dumps(info).encode())
            if match := re.fullmatch(f"/api/datasets/{name}/tree/[^/]+/?(.*)", path):
                return self.fails("later") or self.tree(files, match[1] + "/" if match[1] else "")
            if match := re.fullmatch(f"/datasets/{name}/resolve/[^/]+/(.+)", path):
                is_data = match[1] in files and match[1] != "README.md"
                kind = "later" if not is_data else "second" if "00001-of-" in match[1] else "files"
                return self.fails(kind) or self.file(match[1], files.get(match[1]), kind)
        self.answer(404, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET

    def fails(self, kind: str) -> bool:
        """Whether the request has failed: the fault is one of requests of this kind."""
        if not self.is_meant(kind) or not (self.fault.isdigit() or self.fault == "hang"):
            return False
        if self.fault == "hang":
            self.hang()
        else:
            codes = {"404": "EntryNotFound" if kind in ("files", "second") else "RepoNotFound", "403": "GatedRepo"}
            headers = {"X_Error_Code": codes[self.fault]} if self.fault in codes else {}
            if self.fault == "429":
                headers = {"Retry_After": 300, "RateLimit": '"api";r=0;t=300'}
            self.answer(int(self.fault), **headers)
        return True

    def is_meant(self, kind: str) -> bool:
        return PLACES.index(kind) >= PLACES.index(self.place)

    def hang(self) -> None:
        self.hub.closing.wait()
        self.close_connection = True

    def trickle(self, data: bytes) -> None:
        """Send a byte at a time, so slowly that it takes minutes and that the client is never left waiting for long."""
        for byte in data:
            self.wfile.write(bytes([byte]))
            if self.hub.closing.wait(TRICKLE_SECONDS):
                break
        self.close_connection = True

    def tree(self, files: dict[str, bytes], folder: str) -> None:
        entries = {}
        for path, body in files.items():
            if path.startswith(folder):
                name, *below = path.removeprefix(folder).split("/")
                kind = {"type": "directory", "oid": "0" * 40} if below else {"type": "file", **stated(path, body)}
                entries[name] = {"path": folder + name, **kind}
        if not entries:
            return self.answer(404, X_Error_Code="EntryNotFound")
        self.answer(200, json.dumps(list(entries.values())).encode())

    def file(self, path: str, body: bytes | None, kind: str) -> None:
        if body is None:
            return self.answer(404, X_Error_Code="EntryNotFound")
        fault = self.fault if self.is_meant(kind) else "none"
        body = renamed(path, body) if fault == "column" else body
        entry = stated(path, body)
        headers = {"ETag": f'"{entry["oid"]}"', "Accept_Ranges": "bytes"}
        if "lfs" in entry:  # the storage of large files has an ETag of its own
            large = {"X_Linked_ETag": f'"{entry["lfs"]["oid"]}"', "X_Linked_Size": len(body)}
            headers |= {**large, "ETag": f'"{hashlib.md5(body).hexdigest()}"'}
        body = damaged(body) if fault == "checksum" else body
        body = body[: -len(body) // 3] if fault == "size" and self.command != "HEAD" else body
        middle, start, end, status = len(body) // 2, 0, len(body), 200
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if match and fault != "loop":
            start, end, status = int(match[1]), min(int(match[2] or len(body)) + 1, len(body)), 206
            headers["Content_Range"] = f"bytes {start}-{end - 1}/{len(body)}"
        part = body[start:end]
        is_first = (
            fault == "once" and self.command == "GET" and (self.headers["Authorization"], path) not in self.hub.cut
        )
        partly = ("stall", "cut", "loop", "slow", "trickle", "headers")
        if self.command == "HEAD" or not (fault in partly or is_first):
            return self.answer(status, part, **headers)
        if fault == "headers":
            return self.trickle(b"X-Letters: " + b"a" * 1000)
        self.answer(status, **{"Content_Length": len(part), **headers})
        if fault == "slow":
            for eighth in range(8):
                self.wfile.write(part[len(part) * eighth // 8 : len(part) * (eighth + 1) // 8])
                self.hub.closing.wait(1)
            return
        if fault == "trickle":
            return self.trickle(part)
        self.hub.cut.add((self.headers["Authorization"], path))
        self.wfile.write(part[: max(middle - start, 0)])
        self.close_connection = True
        if fault == "stall":
            self.hang()


@contextmanager
def hub_server() -> Iterator[str]:
    """Serve version a of the datasets, and a later version b, until the end of the context; yields the address."""
    hub = Hub({"a": repositories(""), "b": repositories(" again")})
    with ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": hub})) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        hub.closing.set()
        server.shutdown()


def run_child(home: Path, endpoint: str, phases: list, limits: dict | None = None, **environment: str) -> list:
    """The results of tests/data/hub_child.py, which see."""
    environment = {**os.environ, "HF_HOME": str(home), "HF_ENDPOINT": endpoint, "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-m", "tests.data.hub_child", json.dumps(phases), json.dumps(limits or {})]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert (finished.returncode, finished.stderr) == (0, "")
    return json.loads(finished.stdout)
