"""A plugin with more transforms than fit on a screen."""

import xformd


def _singer(name: str, number: int) -> xformd.Transform:
    @xformd.transform(name=f"{name}-{number}")
    def sing(poem: str, *, times: int = 1) -> str:
        """Sing the poem.

        Args:
            poem: any text.
            times: how often.
        """
        return "\n".join([poem] * times)

    return sing


@xformd.hookimpl
def xformd_transforms() -> list[xformd.Transform]:
    return [_singer(voice, number) for voice in ("soprano", "alto", "tenor", "bass") for number in range(1, 13)]
