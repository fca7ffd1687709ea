"""What Envoy takes and we do not yet is refused with its path, never ignored."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.differential.cases import Case
from tests.differential.topic import SERVERS, Topic, all_topics

REFUSED = [(name, case) for name, topic in all_topics().items() for case in topic.cases if case.refused]
PORTS = dict.fromkeys((*SERVERS, "dead"), 9)


@pytest.mark.parametrize(("topic", "refused"), REFUSED, ids=[f"{name}-{case.name}" for name, case in REFUSED])
def test_refused_with_its_path(topic: str, refused: Case, tmp_path: Path) -> None:
    text = validate(all_topics()[topic].only(refused), tmp_path)
    assert "static_resources.listeners[0]" in text
    assert refused.refused in text


def validate(topic: Topic, directory: Path) -> str:
    """What `meshproxy validate` says against the configuration."""
    config = directory / "envoy.yaml"
    config.write_text(topic.bootstrap_yaml(PORTS, str(directory / "access.log")))
    command = [sys.executable, "-m", "meshproxy", "validate", "-c", str(config)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1, result.stdout + result.stderr
    return result.stdout + result.stderr
