"""Which transforms run in the reactor and which in a worker: the author's word, unless the operator has another."""

import attrs

from xformd.errors import ConfigError, XformError
from xformd.plugins.definition import Transform
from xformd.plugins.registry import Registry


@attrs.frozen
class Placement:
    """What the operator overrules.

    Args:
        inline: names of transforms that run in the reactor, whatever their authors say.
        isolate: names of transforms that run in a worker, whatever their authors say.
    """

    inline: frozenset[str] = frozenset()
    isolate: frozenset[str] = frozenset()

    def is_isolated(self, transform: Transform) -> bool:
        """Whether a transform runs in a worker."""
        if transform.asynchronous or transform.name in self.inline:
            return False
        return transform.name in self.isolate or not transform.inline

    def check(self, registry: Registry) -> None:
        """Compare with what there is.

        Raises:
            ConfigError: it names a transform that is not there, or one that needs the reactor.
        """
        for setting, names in (("inline", self.inline), ("isolate", self.isolate)):
            for name in sorted(names):
                self._check_one(setting, name, registry)

    @staticmethod
    def _check_one(setting: str, name: str, registry: Registry) -> None:
        try:
            entry = registry.resolve(name)
        except XformError as error:
            raise ConfigError(error.message, setting=setting) from error
        if setting == "isolate" and entry.transform.asynchronous:
            reason = f"{name} is asynchronous, and needs the reactor that runs in the server alone"
            raise ConfigError(reason, setting=setting)
