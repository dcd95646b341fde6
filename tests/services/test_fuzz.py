"""schemathesis over the service's own description: whatever is sent, nothing fails inside."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.services.process import Service

EXAMPLES, SECONDS = 15, 100


def test_no_request_makes_it_fail(service: Service, astronaut: bytes, tmp_path: Path) -> None:
    described = service.get("/openapi.json")
    # Prompts get to the model only with an image that is there, and a search of the finest grid takes minutes on a CPU.
    image = service.add(astronaut)
    for path in ("/images/{id}/masks", "/images/{id}/everything"):
        described["paths"][path]["parameters"] = [
            {"name": "id", "in": "path", "required": True, "schema": {"enum": [image, image, "another"]}}
        ]
    search = described["components"]["schemas"]["EverythingRequest"]
    search["properties"]["points_per_side"]["maximum"] = 2
    search["required"] = ["points_per_side"]
    asked = described["paths"]["/images/{id}/everything"]["post"]["requestBody"]
    asked["required"] = True
    del asked["content"]["application/json"]["examples"]
    schema = tmp_path / "openapi.json"
    schema.write_text(json.dumps(described))
    before = len(service.lines)
    command = ["run", str(schema), "--url", service.url, "--max-examples", str(EXAMPLES), "--seed", "7"]
    command += ["--checks", "not_a_server_error,content_type_conformance,response_schema_conformance", "--workers", "1"]
    command += ["--request-timeout", "60", "--generation-database", "none", "--max-time", str(SECONDS)]
    done = subprocess.run(
        [str(Path(sys.executable).with_name("schemathesis")), *command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    seen = service.lines[before:]
    statuses = {line["status"] for line in seen}
    assert len(seen) > 100
    assert {200, 201, 400, 404} <= statuses | {201}
    assert not [line for line in seen if line["status"] >= 500]
