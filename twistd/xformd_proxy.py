"""Tells twistd of ``xformd-proxy``; it is installed into ``twisted/plugins``, where twistd looks."""

from twisted.application.service import ServiceMaker

xformd_proxy = ServiceMaker(
    "xformd-proxy",
    "xformd.twistd_proxy",
    "A caching proxy in front of transform servers.",
    "xformd-proxy",
)
