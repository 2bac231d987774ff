"""Tells twistd of ``xformd``; it is installed into ``twisted/plugins``, where twistd looks."""

from twisted.application.service import ServiceMaker

xformd_server = ServiceMaker("xformd", "xformd.twistd", "A transform server.", "xformd")
