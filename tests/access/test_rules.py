"""An access file: what it may say, and who is who by it."""

import hashlib
import os
from pathlib import Path

import pytest

from xformd.access.rules import NOBODY, Identity, Rules, new_token, read_rules
from xformd.errors import ConfigError

TOKEN, DIGEST = new_token()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "access.toml"


def rules(file: Path, text: str) -> Rules:
    file.write_text(text)
    return read_rules(file)


def mistakes(file: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        rules(file, text)
    told = caught.value.details or (caught.value.message,)
    return [line.removeprefix(f"{file}, ") for line in told]


def test_a_token_has_256_random_bits_and_only_its_digest_is_kept(file: Path) -> None:
    assert len({new_token() for _ in range(100)}) == 100
    assert len(TOKEN.removeprefix("xformd_")) == 43
    assert hashlib.sha256(TOKEN.encode()).hexdigest() == DIGEST
    read = rules(file, f'[identity.ci]\ntoken_sha256 = "{DIGEST}"\ntransforms = ["wrap"]')
    found = read.by_token(TOKEN.encode())
    assert found is not None
    assert found.name == "ci"
    assert DIGEST not in repr(read)
    for wrong in (b"", b"xformd_", TOKEN.encode()[:-1], TOKEN.encode() + b"\n", DIGEST.encode()):
        assert read.by_token(wrong) is None


def test_nobody_has_the_token_of_an_identity_without_one(file: Path) -> None:
    read = rules(file, '[identity.a]\nunix_uid = 5\n[identity.b]\ntls_san = "b.internal"\n')
    assert read.by_token(b"") is None
    assert read.by_token(b"\0" * 32) is None


def test_who_is_at_the_other_end(file: Path) -> None:
    text = '[identity.web]\ntls_san = "web.internal"\n[identity.deploy]\nunix_uid = 0\n'
    read = rules(file, text)
    assert read.by_peer(frozenset({"web.internal", "x"}), 0).name == "web"
    assert read.by_peer(uid=0).name == "deploy"
    upper = text.replace("web.internal", "Web.Internal")
    assert rules(file, upper).by_peer(frozenset({"web.internal"})).name == "web"
    assert read.by_peer(frozenset({"WEB.internal"}), 1) is NOBODY
    assert read.by_peer() is NOBODY
    assert rules(file, f"{text}[identity.anonymous]\n").by_peer(uid=-1).name == "anonymous"


@pytest.mark.parametrize(
    ("patterns", "may", "may_not"),
    [
        ('["format-*", "wrap"]', ["format-", "format-json", "wrap"], ["formats", "wraps", "xformat-a", ""]),
        ('["*"]', ["anything"], []),
        ("[]", [], ["wrap"]),
        ('["[ab]c", "d?"]', ["ac", "bc", "de"], ["cc", "d", "def"]),
    ],
)
def test_transforms_are_names_or_patterns(file: Path, patterns: str, may: list[str], may_not: list[str]) -> None:
    identity = rules(file, f"[identity.anonymous]\ntransforms = {patterns}").by_peer()
    assert [*map(identity.may_use, may)] == [True] * len(may)
    assert [*map(identity.may_use, may_not)] == [False] * len(may_not)


@pytest.mark.parametrize(("text", "per_s"), [("50/s", 50), ("120/min", 2), ("1800/h", 0.5), ("0.5/s", 0.5)])
def test_rates_are_for_a_second_a_minute_or_an_hour(file: Path, text: str, per_s: float) -> None:
    assert rules(file, f'[identity.anonymous]\nrate = "{text}"').by_peer().rate == per_s


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a = 1", "line 1: 'a' is not known here: write [identity.NAME]"),
        ("[identity]\nci = 1", "line 2: identity has a table for each: write [identity.NAME]"),
        ("[identity.'a b']\nunix_uid = 1", "line 1: name an identity with letters and digits; _ . @ - may"),
        ("[identity.a]", "line 1: give it a token_sha256, a tls_san or a unix_uid, or nobody can be it"),
        ("[identity.anonymous]\nunix_uid = 1", "line 1: anonymous shows no credentials: leave them out, or choose"),
        ("[identity.a]\ntokens = 1", "line 2: unknown setting 'tokens'; did you mean 'token_sha256'?"),
        (
            "[identity.a]\ntoken_sha256 = 'ab'",
            "line 2: token_sha256: expected 64 hexadecimal digits, as 'xformd token new NAME' prints",
        ),
        ("[identity.a]\nname = 'b'", "line 2: unknown setting 'name'"),
        ("[identity.a]\nunix_uid = -1", "line 2: unix_uid takes a whole number from 0, not -1"),
        ("[identity.a]\nrate = '5'", "line 2: rate: write 50/s, 100/min or 1000/h"),
        ("[identity.a]\nrate = '0/s'", "line 2: rate: write 50/s, 100/min or 1000/h"),
        ("[identity.a]\ntransforms = 'wrap'", "line 2: transforms: write names of transforms, or patterns: ["),
        ("[identity.a]\ntransforms = ['Wrap']", "line 2: transforms: write names of transforms, or patterns: ["),
        ("[identity.a]\nmax_in_flight = 0", "line 2: max_in_flight takes a whole number from 1, not 0"),
        ("[identity.a]\nmonitor = 5", "line 2: monitor takes true or false"),
        (
            "[identity.a]\nunix_uid = 1\n[identity.b]\nunix_uid = 1",
            "line 3: identity b has the same credentials as a",
        ),
        ("[identity.a", "line 1: not valid TOML"),
    ],
)
def test_a_mistake_is_one_line_that_names_its_place(file: Path, text: str, says: str) -> None:
    assert mistakes(file, text)[0].startswith(says)


def test_a_file_that_others_may_write_is_refused(file: Path) -> None:
    file.write_text("[identity.anonymous]")
    file.chmod(0o666)
    with pytest.raises(ConfigError, match="other users may write"):
        read_rules(file)
    os.mkfifo(file.with_name("pipe"))
    with pytest.raises(ConfigError, match=r"pipe is not a regular file$"):
        read_rules(file.with_name("pipe"))
    with pytest.raises(ConfigError, match=r"cannot read settings from .*: No such file"):
        read_rules(file.with_name("none"))


def test_case_tells_uris_apart_and_no_dns_names(file: Path) -> None:
    text = '[identity.web]\ntls_san = "Web.Internal"\n[identity.admin]\ntls_san = "spiffe://a/Admin"\n'
    read = rules(file, text)
    assert read.by_peer(frozenset({"web.internal"})).name == "web"
    assert read.by_peer(frozenset({"spiffe://a/Admin"})).name == "admin"
    assert read.by_peer(frozenset({"spiffe://a/admin"})) is NOBODY
    again = '[identity.other]\ntls_san = "web.internal"\n[identity.user]\ntls_san = "spiffe://a/admin"\n'
    assert mistakes(file, text + again) == ["line 5: identity other has the same credentials as web"]


def test_credentials_are_looked_at_once_for_each_identity(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[Identity] = []

    def look(identity: Identity) -> tuple[object, ...]:
        looks.append(identity)
        return (identity.unix_uid,)

    monkeypatch.setattr(Identity, "credentials", property(look))
    rules(file, "".join(f"[identity.u{number}]\nunix_uid = {number + 1}\n" for number in range(100)))
    assert len(looks) < 100 * 5
