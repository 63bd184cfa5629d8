"""The one error of the test cluster: a sentence for a person, never a traceback."""


class ClusterError(Exception):
    """What went wrong, where, and the next step to take."""
