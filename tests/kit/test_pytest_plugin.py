"""The fixtures of ``pytest --xformd``: a transform's options reach it, whatever they are called."""

from support.clients import FakeServer, answers, upper
from xformd.blocking import TransformClient
from xformd.kit.pytest_plugin import XformdServer


def test_an_option_may_be_called_like_an_argument_of_the_client() -> None:
    fake = FakeServer(answers(upper))
    with TransformClient(fake.address) as client:
        server = XformdServer.__new__(XformdServer)  # without the process
        server._client, server._kinds = client, {"wait": "text"}
        assert server.xform("wait", "owl", timeout=3, poem="a b", transform=1) == "OWL"
    fake.stop()
    assert fake.received[-1] == b"1 wait:poem=a%20b,timeout=3,transform=1.owl"
