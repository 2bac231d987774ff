"""The settings of a server: defaults < TOML file < ``XFORMD_*`` environment < flags. No Twisted."""

from xformd.config.settings import TABLE, Setting, Settings
from xformd.config.sources import Configuration, Value, configure

__all__ = ["TABLE", "Configuration", "Setting", "Settings", "Value", "configure"]
