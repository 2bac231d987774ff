"""Summaries come as they are asked for; an API that is away is asked again in time, and its key never shows."""

import asyncio
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import entry_points
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import xformd_summarise
from xformd_summarise import Settings, xformd_transforms

import xformd
from conftest import KEY, Answer, FakeApi
from xformd.plugins.job import ends_in

XFORMD = Path(sys.executable).with_name("xformd")
POEM = "The Owl and the Pussy-cat went to sea in a beautiful pea-green boat."


def summarise(api: FakeApi, poem: str = POEM, *, left_s: float = 10, key: str = KEY, **options: object) -> str:
    """Call the transform as a worker does that has this many seconds left."""
    settings = Settings(base_url=api.url, model="owl-1", key=xformd.Secret(key))

    async def call() -> str:
        (transform,) = xformd_transforms(settings)
        transform.warm_up()
        try:
            return await transform(poem, **options)
        finally:
            await transform.warm_up().aclose()

    with ends_in(left_s):
        return asyncio.run(call())


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries follow each other at once, where the API names no time."""
    monkeypatch.setattr(xformd_summarise, "FIRST_WAIT_S", 0.01)


def test_xformd_finds_the_transform_through_the_entry_point() -> None:
    (entry_point,) = entry_points(group="xformd", name="summarise")
    module = entry_point.load()
    assert module.xformd_settings() is Settings
    assert [each.name for each in module.xformd_transforms(Settings())] == ["summarise"]


def test_a_summary_is_what_the_model_answers(api: FakeApi) -> None:
    assert summarise(api) == "They went to sea.\n"
    ((headers, body),) = api.requests
    assert (headers["Authorization"], body["path"], body["model"]) == (f"Bearer {KEY}", "/v1/chat/completions", "owl-1")
    system, user = body["messages"]
    assert "at most 3 sentences, in its own language" in system["content"]
    assert user == {"role": "user", "content": POEM}


def test_options_reach_the_model(api: FakeApi) -> None:
    summarise(api, sentences=1, language="French")
    assert "in one sentence, in French" in api.requests[0][1]["messages"][0]["content"]


def test_an_api_without_keys_gets_none(api: FakeApi) -> None:
    summarise(api, key="")
    assert "Authorization" not in api.requests[0][0]


def test_nothing_is_asked_about_a_poem_without_text(api: FakeApi) -> None:
    assert (summarise(api, " \n"), api.requests) == ("", [])


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 529])
@pytest.mark.usefixtures("soon")
def test_what_passes_is_tried_again(api: FakeApi, status: int) -> None:
    api.answers.extendleft([Answer(status=status), Answer(status=status, body=b"<html>")])
    assert summarise(api) == "They went to sea.\n"
    assert len(api.requests) == 3


def test_the_api_says_when_to_try_again(api: FakeApi) -> None:
    api.answers.appendleft(Answer(status=429, headers={"Retry-After": "1"}))
    began = time.monotonic()
    assert summarise(api) == "They went to sea.\n"
    assert time.monotonic() - began >= 1


def test_a_time_past_the_deadline_is_not_waited_for_but_passed_on(api: FakeApi) -> None:
    api.answers[0] = Answer(status=429, headers={"Retry-After": "90"})
    began = time.monotonic()
    with pytest.raises(xformd.Unavailable, match="overloaded: it answered 429") as caught:
        summarise(api, left_s=60)
    assert (caught.value.retry_after_ms, len(api.requests)) == (90_000, 1)
    assert time.monotonic() - began < 50


@pytest.mark.parametrize("text", ["soon", "-1", "Wed, 21 Oct 2015 07:28:00 GMT", "1e9", "9" * 99, "٣"])
@pytest.mark.usefixtures("soon")
def test_other_words_for_when_to_try_again_mean_nothing(api: FakeApi, text: str) -> None:
    api.answers.appendleft(Answer(status=503, headers={"Retry-After": text.encode().decode("latin-1")}))
    assert summarise(api) == "They went to sea.\n"


@pytest.mark.usefixtures("soon")
def test_tries_end_before_the_deadline(api: FakeApi) -> None:
    api.answers[0] = Answer(status=503)
    began = time.monotonic()
    with pytest.raises(xformd.Unavailable, match="it answered 503") as caught:
        summarise(api, left_s=2)
    assert time.monotonic() - began < 30
    assert len(api.requests) > 1
    assert caught.value.retry_after_ms >= 1000


def test_an_api_that_hangs_is_left_before_the_deadline(api: FakeApi) -> None:
    api.answers[0] = Answer(delay_s=90)
    began = time.monotonic()
    with pytest.raises(xformd.Unavailable, match="took too long"):
        summarise(api, left_s=1.5)
    assert time.monotonic() - began < 60


def test_an_api_that_is_away_is_unavailable(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xformd_summarise, "FIRST_WAIT_S", 100)  # past the deadline
    api.shutdown()
    api.server_close()
    with pytest.raises(xformd.Unavailable, match=r"^the API cannot be reached$"):
        summarise(api)


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (Answer(status=401, body=KEY.encode()), xformd.Unavailable, r"refuses the key.*key_file in \[plugin"),
        (Answer(status=403), xformd.Unavailable, "refuses the key"),
        (Answer(status=404), xformd.Unavailable, "no such address or model"),
        (Answer(status=400, body=b'{"error": {"code": "context_length_exceeded"}}'), xformd.GibberishError, "too long"),
        (Answer(status=400, body=b'{"error": "secret"}'), xformd.TransformFailed, "^the API .* answered 400$"),
        (Answer(status=302, headers={"Location": "http://127.0.0.1:9/"}), xformd.TransformFailed, "answered 302"),
        (Answer(body=b"<html>"), xformd.TransformFailed, "no chat completion"),
        (Answer(body=b"[]"), xformd.TransformFailed, "no chat completion"),
        (Answer(body=b'{"choices": []}'), xformd.TransformFailed, "no chat completion"),
        (Answer(text=" "), xformd.TransformFailed, "without a text"),
        (Answer(body=b'{"choices": [{"message": {"content": null}}]}'), xformd.TransformFailed, "without a text"),
    ],
)
def test_what_does_not_pass_is_told_at_once_and_without_the_key(
    api: FakeApi, answer: Answer, error: type[Exception], words: str
) -> None:
    api.answers[0] = answer
    with pytest.raises(error, match=words) as caught:
        summarise(api)
    assert len(api.requests) == 1
    assert "sesame" not in str(caught.value) + repr(caught.value.__cause__)


@pytest.mark.parametrize("missing", ["base_url", "model"])
def test_without_settings_nothing_is_sent_anywhere(missing: str) -> None:
    (transform,) = xformd_transforms(Settings(**{"base_url": "http://127.0.0.1:9/v1", "model": "owl-1", missing: ""}))
    with pytest.raises(xformd.Unavailable, match=r"needs base_url and model in \[plugin"):
        asyncio.run(transform(POEM))


def test_a_cancelled_call_lets_go_of_the_api_at_once(api: FakeApi) -> None:
    api.answers[0] = Answer(delay_s=90)

    async def call() -> None:
        (transform,) = xformd_transforms(Settings(base_url=api.url, model="owl-1"))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(transform(POEM), 0.2)
        await transform.warm_up().aclose()

    began = time.monotonic()
    asyncio.run(call())
    assert time.monotonic() - began < 60


def test_a_server_asks_for_many_summaries_at_a_time(api: FakeApi, tmp_path: Path) -> None:
    """On one worker; and neither its log nor its settings show the key."""
    (tmp_path / "key").write_text(KEY + "\n")
    (tmp_path / "xformd.toml").write_text(
        f'[plugin."xformd-summarise"]\nbase_url = "{api.url}"\nmodel = "owl-1"\nkey_file = "{tmp_path}/key"\n'
    )
    for path in tmp_path.iterdir():
        path.chmod(0o600)
    config, log = ["--config", tmp_path / "xformd.toml"], tmp_path / "log"
    command = [XFORMD, "serve", *config, "--plugins=xformd-summarise", "--port=0", "--workers=1"]
    command.append("--http=tcp:0:interface=127.0.0.1")
    with (
        log.open("wb") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as process,
    ):
        try:
            http = next(line.split()[-1] for line in process.stdout if " listening on http" in line)
            assert post(http, POEM)[:2] == (200, "They went to sea.\n")
            api.answers[0] = Answer(delay_s=0.3)
            with ThreadPoolExecutor(20) as pool:
                assert {*pool.map(lambda _: post(http, POEM)[0], range(20))} == {200}
            assert api.most_under_way > 5
            api.answers[0] = Answer(status=429, headers={"Retry-After": "120"})
            assert post(http, POEM)[::2] == (503, "120")
            api.answers[0] = Answer(status=401)
            status, problem, _ = post(http, POEM)
            assert (status, "refuses the key" in problem) == (503, True)
        finally:
            process.terminate()
    command = [XFORMD, "config", *config, "--plugins=xformd-summarise"]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "owl-1" in shown.stdout
    assert "sesame" not in shown.stdout + shown.stderr + log.read_text()


def post(http: str, poem: str) -> tuple[int, str, str | None]:
    request = Request(f"{http}/transform/summarise", poem.encode(), {"Content-Type": "text/plain"})
    try:
        with urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode(), None
    except HTTPError as error:
        with error:
            return error.code, json.loads(error.read())["detail"], error.headers["Retry-After"]
