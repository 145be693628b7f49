"""What tests of data share."""

import json

import pytest


@pytest.fixture
def file(tmp_path):
    """Writes lines, objects or text, and gives the path."""

    def write(*lines, name="x.jsonl"):
        path = tmp_path / name
        path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
        return str(path)

    return write
