"""A server that takes what the library of Weights & Biases sends, and can be taken away."""

import gzip
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

USER = {"id": "1", "entity": "us", "username": "us", "email": "us@here", "flags": "{}", "teams": {"edges": []}}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None: ...

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        answer = json.dumps(answered(json.loads(body)) if self.path == "/graphql" else {}).encode()
        if self.path.endswith("/file_stream"):
            print(json.dumps({"run": self.path.split("/")[-2], **json.loads(body)}), flush=True)
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_PUT = do_POST


def answered(request: dict[str, Any]) -> dict[str, Any]:
    query, variables = request["query"], request.get("variables") or {}
    data: dict[str, Any] = {}
    if "viewer" in query:
        data["viewer"] = USER
    if "serverInfo" in query:
        data["serverInfo"] = {"features": []}
    if "createRunFiles" in query:
        files = [{"name": name, "uploadUrl": f"http://{ADDRESS}/file"} for name in variables["files"]]
        data["createRunFiles"] = {"runID": "1", "uploadHeaders": [], "files": files}
    if "upsertBucket" in query:
        project = {"id": "1", "name": variables["project"], "entity": {"id": "1", "name": "us"}}
        bucket = {"id": "1", "name": variables["name"], "displayName": "n", "config": "{}", "historyLineCount": 0}
        data["upsertBucket"] = {"bucket": {**bucket, "project": project}, "inserted": True}
    return {"data": data}


if __name__ == "__main__":
    ADDRESS = f"127.0.0.1:{sys.argv[1]}"
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
