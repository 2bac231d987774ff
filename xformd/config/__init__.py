"""What an operator decides: defaults < TOML file < ``XFORMD_*`` environment < flags."""

from xformd.config.settings import Settings

__all__ = ["Settings"]
