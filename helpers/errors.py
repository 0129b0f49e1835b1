"""The four ways in which a recipe ends badly. Each message says what to do next."""


class RecipeError(Exception):
    """Base of the recipes' own errors. Never raised itself."""


class NotConfigured(RecipeError):
    """A setting or a credential is missing or unusable; nothing was sent.

    Not raised when a service refuses credentials that are there: that is :class:`Rejected`.
    """


class Rejected(RecipeError):
    """The request is wrong, or the service refused it: repeating it unchanged would fail again.

    Also raised by the checks that run here before anything is sent, with all problems at once.
    """

    @classmethod
    def because(cls, what: str, problems: list[str]) -> "Rejected":
        """One error for all ``problems`` (at least one)."""
        return cls("\n".join([f"{what} ({len(problems)} problem{'s' * (len(problems) > 1)}):", *bullets(problems)]))


class TimedOut(RecipeError):
    """The deadline passed, or a service did not answer in time. Running again carries on; nothing is lost."""


class FailedRemotely(RecipeError):
    """The service accepted the work and could not do it; the message has the remote reason."""


def bullets(lines: list[str]) -> list[str]:
    """``lines`` as the items of a plain-text list."""
    return [f"  - {line}" for line in lines]
