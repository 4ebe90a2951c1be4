"""The fuzzers see what is wrong, give the same inputs for the same seed, and find nothing in a first few seconds."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx
import numpy as np
import pytest
from typer.testing import CliRunner

from embedder.errors import InvalidInput
from lab.fuzzing import findings, http, text
from lab.fuzzing.findings import Findings
from tests.in_process import adapter


@pytest.fixture
def result(tmp_path) -> Findings:
    return Findings("trial", 0, tmp_path)


def raises(error: Exception) -> None:
    raise error


def test_only_a_sentence_or_an_answer_is_no_finding(result):
    assert result.judge(b"good", lambda: None) is None
    assert result.judge(b"bad", lambda: raises(InvalidInput("too large: 9"))) is None
    assert "ValueError in test_fuzzing.py" in result.judge(b"worse", lambda: raises(ValueError()))
    assert result.outcomes == {"accepted": 1, "refused": 1, "finding": 1}


def test_what_takes_too_long_is_a_finding(result, monkeypatch):
    monkeypatch.setattr(findings, "MAX_SECONDS", 0.01)
    assert "took" in result.judge(b"slow", lambda: sum(range(10**6)))


def test_the_smallest_input_is_kept_and_the_exit_status_says_that_there_is_one(result, capsys):
    for content in (b"long enough", b"short", b"longer again"):
        result.judge(content, lambda: raises(KeyError()))
    with pytest.raises(findings.typer.Exit) as exited:
        result.report()
    assert exited.value.exit_code == 1
    assert [file.read_bytes() for file in result.folder.iterdir()] == [b"short"]
    assert '"findings": ["KeyError' in capsys.readouterr().out.splitlines()[-1]


def test_a_seed_decides_every_input():
    def drawn(seed: int) -> list:
        texts = text.Texts(["<|im_end|>"], np.random.default_rng(seed))
        return [(texts.text(), texts.options()) for _ in range(20)]

    assert drawn(1) == drawn(1) != drawn(2)


def test_texts(result):
    subject = text.Subject(str(text.TINY))
    texts = text.Texts(sorted(subject.special), np.random.default_rng(0))
    for _ in range(300):
        drawn, options = texts.text(), texts.options()
        result.judge(drawn.encode("utf-8", "replace"), partial(subject.run, drawn, options))
    assert not result.found
    assert result.outcomes["accepted"] > 100


def test_the_real_server(stack, result):
    with httpx.Client(base_url=stack.adapter_url, timeout=60) as client, ThreadPoolExecutor(http.CALLERS) as pool:
        caller = http.Caller(client, result, 0)
        list(pool.map(caller.step, range(200)))
    assert not result.found
    assert min(result.outcomes[outcome] for outcome in ("good", "accepted", "refused")) > 10


@pytest.mark.parametrize("program", [text, http])
def test_help_has_an_example(program):
    shown = CliRunner().invoke(program.app, ["--help"])
    assert f"python -m {program.__name__} --inputs" in shown.output


# What schemathesis found


async def test_metrics_are_described_as_text():
    async with adapter() as client:
        described = (await client.get("/openapi.json")).json()["paths"]["/metrics"]["get"]["responses"]["200"][
            "content"
        ]
        assert (await client.get("/metrics")).headers["content-type"].partition(";")[0] in described
