"""Tells twistd of ``xformd-poem``; it is installed into ``twisted/plugins``, where twistd looks."""

from twisted.application.service import ServiceMaker

xformd_poem = ServiceMaker(
    "xformd-poem",
    "xformd.twistd_poem",
    "A poem server, or a caching proxy in front of one.",
    "xformd-poem",
)
