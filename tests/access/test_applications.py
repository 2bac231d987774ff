"""The applications of those who ask over HTTP."""

import gc
import weakref
from pathlib import Path

from twisted.internet.task import Clock

from support.http_front import Front, request
from xformd.access.guard import Access
from xformd.http.application import GuardedApplication, make_application


def test_nothing_is_kept_of_who_is_revoked(tmp_path: Path) -> None:
    file = tmp_path / "access.toml"
    anybody = '[identity.anonymous]\ntransforms = ["upper"]\n'
    file.write_text(anybody)
    access = Access(file, Clock())
    client = Front(make=lambda each: GuardedApplication(access, each, make_application)).client(b"")
    (answer,) = client.ask(request("/transform/upper", b"owl"))
    assert answer.body == b"OWL"
    grant = weakref.ref(access.by_peer())
    file.write_text("")
    access.reload()
    (answer,) = client.ask(request("/transform/upper", b"owl"))
    assert answer.status == 401
    gc.collect()
    assert grant() is None


def test_what_a_client_has_already_counts_for_its_rate(tmp_path: Path) -> None:
    file = tmp_path / "access.toml"
    file.write_text('[identity.anonymous]\ntransforms = ["upper"]\nrate = "2/s"\n')
    access = Access(file, Clock())
    front = Front(make=lambda each: GuardedApplication(access, each, make_application))
    client = front.client(b"")
    (answer,) = client.ask(request("/transform/upper?poem=owl"))
    again = request("/transform/upper?poem=owl", if_none_match=answer.headers["etag"])
    assert [client.ask(again)[0].status for _ in range(2)] == [304, 429]
