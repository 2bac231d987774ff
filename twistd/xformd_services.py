"""The commands that xformd adds to twistd; this file is installed into ``twisted/plugins``, where twistd looks."""

from twisted.application.service import ServiceMaker

server = ServiceMaker("xformd", "xformd.twistd.server", "A transform server.", "xformd")
proxy = ServiceMaker(
    "xformd-proxy", "xformd.twistd.caching_proxy", "A caching proxy in front of transform servers.", "xformd-proxy"
)
poem = ServiceMaker(
    "xformd-poem", "xformd.twistd.poem", "A poem server, or a caching proxy in front of one.", "xformd-poem"
)
