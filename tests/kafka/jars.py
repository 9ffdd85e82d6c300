"""The broker's jars: fetched from Maven Central once, kept under `.cache/kafka`, used again when complete."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

VERSION = "4.1.0"
CACHE = Path(__file__).parents[2] / ".cache" / "kafka"

FETCH_S_MAX = 60.0
"""Measured: 6 s and 43 MB. Together with the broker's start it must stay below one test's time limit (120 s); on a slow
network `python -m tests.kafka.jars` fetches in advance and waits longer."""

FETCH_IN_ADVANCE_S_MAX = 600.0

POM = f"""\
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>depesche</groupId>
  <artifactId>kafka-for-tests</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{VERSION}</version></dependency>
    <dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version></dependency>
  </dependencies>
</project>
"""


class KafkaMissing(Exception):
    """No broker can be had here; the text says what was tried."""


def jars(timeout_s: float = FETCH_S_MAX) -> Path:
    """Return the folder of jars, fetching them first when it is not there. Raises `KafkaMissing`."""
    folder = CACHE / f"libs-{VERSION}"
    if folder.is_dir():
        return folder
    for tool in ("java", "mvn"):
        if shutil.which(tool) is None:
            raise KafkaMissing(f"no `{tool}` on the PATH (and DEPESCHE_TEST_KAFKA=host:port is not set)")
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        pom = Path(scratch) / "pom.xml"
        pom.write_text(POM)
        fetched = Path(scratch) / "libs"
        command = ["mvn", "-B", "-q", "-f", str(pom), "dependency:copy-dependencies", f"-DoutputDirectory={fetched}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
        except subprocess.TimeoutExpired as error:
            raise KafkaMissing(f"Maven Central gave no jars within {timeout_s:.0f} s") from error
        if done.returncode != 0:
            raise KafkaMissing(f"mvn could not fetch Kafka {VERSION}: {(done.stdout + done.stderr)[-800:]}")
        try:
            fetched.replace(folder)  # whole or not at all; of two runs at once one wins and both have it
        except OSError:
            if not folder.is_dir():
                raise
    return folder


if __name__ == "__main__":
    print(jars(FETCH_IN_ADVANCE_S_MAX))
