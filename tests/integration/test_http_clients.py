"""The HTTP clients that people use, over HTTP and over HTTPS: each gets its result."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import attrs
import pytest

from support.certificates import tls_endpoint
from support.processes import DEADLINE_S, environment, serving

pytestmark = pytest.mark.slow

POEM = "The Owl and the Pussy-cat\n" * 50
LOAD = 200
"""How many requests a load generator sends."""

NODE = """
const [url, poem] = process.argv.slice(1);
const answers = [...Array(20)].map(() => fetch(url, {method: "POST", body: poem}).then((answer) => answer.text()));
Promise.all(answers).then((texts) => { if (new Set(texts).size === 1) process.stdout.write(texts[0]); });
"""

PYTHON = """
import http.client, ssl, sys
from urllib.parse import urlsplit
url, poem = urlsplit(sys.argv[1]), sys.argv[2].encode()
if url.scheme == "https":
    connection = http.client.HTTPSConnection(url.netloc, context=ssl.create_default_context(cafile=sys.argv[3]))
else:
    connection = http.client.HTTPConnection(url.netloc)
for body in (poem, iter([poem[:100], poem[100:]])):
    connection.request("POST", url.path, body, encode_chunked=True)
    result = connection.getresponse().read()
sys.stdout.buffer.write(result)
"""

REQUESTS = """
import requests
with requests.Session() as session:
    session.trust_env = False  # it may name other certificates
    result = session.post(url, poem, verify=certificate).content
"""

HTTPX = """
import httpx
with httpx.Client(verify=ssl.create_default_context(cafile=certificate)) as client:
    result = client.post(url, content=poem).content
"""

AIOHTTP = """
import aiohttp, asyncio
async def post():
    context = ssl.create_default_context(cafile=certificate)
    async with aiohttp.ClientSession() as session, session.post(url, data=poem, ssl=context) as answer:
        return await answer.read()
result = asyncio.run(post())
"""

LIBRARY = """
import ssl, sys
url, poem, certificate = sys.argv[1], sys.argv[2].encode(), sys.argv[3]
{}
sys.stdout.buffer.write(result)
"""


@attrs.frozen
class Site:
    """A server that answers HTTP and HTTPS."""

    urls: dict[str, str]
    certificate: Path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    endpoint, trusted = tls_endpoint(folder)
    ports = ("--http", "tcp:0:interface=127.0.0.1", "--http", endpoint)
    with serving(folder, "--plugins=none", *ports) as server:
        found = [urlsplit(line.rpartition(" ")[2]) for line in server.greeting if "://" in line]
        urls = {url.scheme: f"{url.scheme}://localhost:{url.port}/transform/upper" for url in found}
        assert sorted(urls) == ["http", "https"]
        yield Site(urls, trusted / "certificate.pem")


def run(*command: str, **variables: str) -> str:
    if shutil.which(command[0]) is None:
        pytest.skip(f"install {command[0]}")
    done = subprocess.run(command, capture_output=True, timeout=DEADLINE_S, env=environment(variables), check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


@pytest.fixture(params=["http", "https"])
def url(request: pytest.FixtureRequest, site: Site) -> str:
    return site.urls[request.param]


@pytest.mark.parametrize(
    "flags", [(), ("--http1.0",), ("-H", "Transfer-Encoding: chunked"), ("-H", "Expect: 100-continue")]
)
def test_curl(site: Site, url: str, flags: tuple[str, ...]) -> None:
    twice = run("curl", "-sS", "--cacert", str(site.certificate), "--data-binary", POEM, *flags, url, url)
    assert twice == 2 * POEM.upper()


def test_wget(site: Site, url: str, tmp_path: Path) -> None:
    (tmp_path / "poem").write_text(POEM)
    flags = (f"--ca-certificate={site.certificate}", f"--post-file={tmp_path}/poem")
    assert run("wget", "-qO-", *flags, url) == POEM.upper()


def test_node(site: Site, url: str) -> None:
    assert run("node", "-e", NODE, url, POEM, NODE_EXTRA_CA_CERTS=str(site.certificate)) == POEM.upper()


def test_python_s_own(site: Site, url: str) -> None:
    assert run(sys.executable, "-c", PYTHON, url, POEM, str(site.certificate)) == POEM.upper()


@pytest.mark.parametrize("code", [REQUESTS, HTTPX, AIOHTTP], ids=["requests", "httpx", "aiohttp"])
def test_libraries_of_python(site: Site, url: str, code: str) -> None:
    assert run(sys.executable, "-c", LIBRARY.format(code), url, POEM, str(site.certificate)) == POEM.upper()


def test_ab_keeps_its_connections_alive(site: Site, url: str, tmp_path: Path) -> None:
    (tmp_path / "poem").write_text(POEM)
    report = run("ab", "-q", "-k", "-n", f"{LOAD}", "-c", "4", "-p", str(tmp_path / "poem"), url)
    figures = dict(re.findall(r"^([\w -]+): +(\d+)", report, re.MULTILINE))
    assert (figures["Complete requests"], figures["Keep-Alive requests"]) == (f"{LOAD}", f"{LOAD}")
    assert figures["Failed requests"] == "0"
    assert "Non-2xx" not in report


def test_wrk(site: Site, url: str) -> None:
    report = run("wrk", "-t1", "-c4", "-d1s", f"{url}?poem=owl")
    assert "requests in" in report
    assert not re.search("Non-2xx|Socket errors", report)
