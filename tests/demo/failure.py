"""The demo's one error: a sentence for the person at the terminal."""


class DemoError(Exception):
    """What went wrong, where, and the next step."""


class JobFailedError(DemoError):
    """The FineTuneJob ended otherwise than Succeeded, or never ended."""
