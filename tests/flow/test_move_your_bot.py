"""README, "Move your bot": each snippet, exactly as it stands there, is a bot that answers a customer.

Against a real `depesche run` with the sandbox as Meta; the bots are processes, their libraries as published.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.trial import CONFIG, prepare
from tests.flow.strangers import node_modules
from tests.flow.trial import ADA, ASSISTANT, CLEO, Trial

README = Path(__file__).parents[2] / "README.md"
SNIPPET = re.compile(r"<!-- snippet: (\S+) -->\n```\w+\n(.*?)```\n", re.DOTALL)
SNIPPETS = dict(SNIPPET.findall(README.read_text()))
ANSWER_S_MAX = 30.0
STOP_S_MAX = 10.0

SAMPLE_BOT = re.compile(r"\[\[sandbox\.bots\]\]\nkind = \"assistant\".*?\n\n", re.DOTALL)


class Moved(Trial):
    """A trial whose assistant is somebody else's bot."""

    def start(self) -> None:
        """Start it from its configuration, without the sample bot whose place another one takes."""
        config = prepare(self.folder, self.ports)
        text = config.read_text()
        config.write_text(SAMPLE_BOT.sub("", text, count=1))
        assert config.read_text() != text
        with self.output.open("ab") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "broker.cli", "run", "--config", str(self.folder / CONFIG)],
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                start_new_session=True,
            )

    def secret(self, name: str) -> str:
        """Return one of its secrets."""
        return (self.folder / "secrets" / name).read_text().strip()


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moved]:
    """One trial for all snippets."""
    with Moved(tmp_path_factory.mktemp("moved") / "data") as one:
        one.start_and_wait()
        yield one


def test_each_kind_of_bot_has_its_snippet() -> None:
    """A marker that was lost would leave a test without work."""
    assert list(SNIPPETS) == ["pywa.py", "whatsapp-api-js.mjs", "plain.py"]


@pytest.mark.parametrize("name", SNIPPETS)
def test_a_snippet_is_a_bot_that_answers(name: str, trial: Moved, tmp_path: Path) -> None:
    """What a newcomer copies works, also for a customer who shows no phone number."""
    file = tmp_path / f"bot{Path(name).suffix}"
    file.write_text(SNIPPETS[name])
    command = [sys.executable, str(file)]
    if name.endswith(".mjs"):
        (tmp_path / "node_modules").symlink_to(node_modules() / "node_modules")
        command = [shutil.which("node") or "node", str(file)]
    environment = {
        **os.environ,
        "GATEWAY": f"http://127.0.0.1:{trial.ports.gateway}",
        "NUMBER": ASSISTANT,
        "BOT_KEY": trial.secret("assistant-key"),
        "BOT_SECRET": trial.secret("assistant-secret"),
        "PORT": str(trial.ports.assistant),
    }
    output = tmp_path / "said"
    with output.open("wb") as stream:
        bot = subprocess.Popen(command, env=environment, stdout=stream, stderr=subprocess.STDOUT, cwd=tmp_path)
    try:
        said = f"hello {name}"
        questions = {person: trial.write(said, person) for person in (ADA, CLEO)}

        def answered() -> bool:
            assert bot.poll() is None, output.read_text()
            return all(
                any(
                    (bubble.get("quoted"), bubble["body"]["body"]) == (question, f"You wrote: {said}")
                    for bubble in trial.answers(person)
                )
                for person, question in questions.items()
            )

        trial.until(answered, ANSWER_S_MAX)
    finally:
        bot.terminate()
        try:
            bot.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            bot.kill()
            bot.wait(STOP_S_MAX)
