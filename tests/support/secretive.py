"""Requests with a secret of the caller's wherever there is room for one, and transforms that quote their options."""

from support.processes import netstring
from support.session_client import OPENING

SECRET = "MY-SECRET-TOKEN-123"

CARELESS = """
import os
import xformd
def refuses(poem: str, *, how: str = "") -> str: raise xformd.BadOptions(f"not {how!r}")
def rejects(poem: str, *, how: str = "") -> str: raise xformd.GibberishError(f"not {how!r}")
def is_away(poem: str, *, how: str = "") -> str: raise xformd.Unavailable(f"not {how!r}")
def raises(poem: str, *, how: str = "") -> str: raise ValueError(f"not {how!r}")
def compiles(poem: str, *, how: str = "") -> str: exec(how + " is not")
def dies(poem: str, *, how: str = "") -> str: os._exit(len(how))
@xformd.hookimpl
def xformd_transforms():
    here = refuses, rejects, is_away, raises, compiles
    made = [xformd.transform(name=f"{each.__name__.replace('_', '-')}-here", inline=True)(each) for each in here]
    return made + [xformd.transform(each) for each in (*here, dies)]
"""
NAMES = ("refuses", "rejects", "is-away", "raises", "compiles")


def in_session(*messages: str) -> bytes:
    return OPENING + b"".join(netstring(message.encode("latin-1")) for message in messages)


def request(target: str, body: str = "", method: str = "POST", **headers: str) -> bytes:
    """Write an HTTP request; names of headers with ``_`` for ``-``."""
    named = {"Host": "localhost", "Content-Length": str(len(body)), **headers}
    lines = [f"{method} {target} HTTP/1.1", *(f"{name.replace('_', '-')}: {value}" for name, value in named.items())]
    return "\r\n".join([*lines, "", body]).encode()


OPTIONS = [  # first what the server itself complains of: of many such lines in a second, a log has the first
    *(f"{spec}={SECRET}" for spec in ("wrap:width", "wrap:widht", f"upper:{SECRET}", "wrap:width=1,width")),
    *(f"{name}:how={SECRET}" for here in ("", "-here") for name in (each + here for each in NAMES)),
    *(f"wrap:width={SECRET}{end}" for end in ("%", "%zz", "%ff", "!", "+", ",x", ":", "=")),
    *(SECRET, f"upper+{SECRET}", f"nosuch:how={SECRET}", f"dies:how={SECRET}", f"raises:how={SECRET}+upper"),
]
"""Specs with the secret everywhere."""

CLASSIC = [*(f"{spec}.poem" for spec in OPTIONS), SECRET, f" {SECRET}.", f"upper {SECRET}=1.poem", f"xformd/2 {SECRET}"]

SESSIONS = [
    *([f"1 {spec}.poem"] for spec in OPTIONS),
    *(
        [f"1 upper {words}.poem"]
        for words in (SECRET, f"{SECRET}=1", f"timeout={SECRET}", f"a={SECRET} a=1", "timeout=0")
    ),
    *(
        [f"{words}.poem"]
        for words in (SECRET, f"{SECRET} upper", f"1{SECRET} upper", f"1 !{SECRET}", f"1 !list {SECRET}")
    ),
    [f"1 wrap:how={SECRET} timeout=0.", f"1 dies:how={SECRET} timeout=1000.", "1 upper."],
]

BATCH = [f'{{"spec": "{spec}", "poem": "owl"}}' for spec in OPTIONS]
BATCH += [
    f'{{"{SECRET}": 1}}',
    f'{{"spec": "upper", "{SECRET}": ""}}',
    f"[{SECRET}]",
    f'{{"spec": "upper", "poem": {SECRET}}}',
]

REQUESTS = [
    *(request(f"/transform/{spec}", "owl") for spec in OPTIONS),
    *(
        request(target, method="GET")
        for target in (f"/{SECRET}", f"/transforms/{SECRET}", f"/transform/wrap?width={SECRET}")
    ),
    *(
        request(f"/transform/upper?{query}", "owl")
        for query in (SECRET, f"{SECRET}=1", f"a={SECRET}&a=1", f"%{SECRET}")
    ),
    *(request("/transform/upper", "owl", **{name: SECRET}) for name in ("X_Timeout_Ms", "Host", "Origin", "Referer")),
    *(
        request("/transform/upper", "owl", **{name: SECRET})
        for name in ("User_Agent", "Authorization", "Cookie", SECRET)
    ),
    *(
        request("/transform/upper", "owl", **{name: SECRET})
        for name in ("Content_Encoding", "Transfer_Encoding", "Expect")
    ),
    *(
        request("/transform/upper", "owl", **{name: SECRET})
        for name in ("X_Forwarded_For", "X_Forwarded_Host", "If_Match")
    ),
    request("/transform/upper", "owl", Forwarded=f'for="{SECRET}";host={SECRET}', X_Forwarded_Prefix=f"/{SECRET}"),
    request("/transform/upper", "owl", Content_Type=f"text/plain; charset={SECRET}"),
    request("/transform/upper", "owl", Content_Type=f"multipart/form-data; boundary={SECRET}"),
    request("/transform/upper", "owl", Content_Length=SECRET),
    request("/transform/upper", "owl", method=SECRET),
    request(f"http://{SECRET}@localhost/{SECRET}", "owl"),
    request("/transform/upper#" + SECRET, "owl"),
    request("/batch", "\n".join(BATCH)),
    f"POST /{SECRET} HTTP/9.9\r\n\r\n".encode(),
    f"POST /{SECRET}\r\n{SECRET}\r\n\r\n".encode(),
    request("/transform/upper", Transfer_Encoding="chunked").replace(b"Content-Length: 0\r\n", b"")
    + f"3;{SECRET}={SECRET}\r\nowl\r\n{SECRET}\r\n".encode(),
    f"{SECRET} ".encode() * 1_000,
]
"""``X-Request-Id`` is not among them: it is the caller's name for a line of the log."""
