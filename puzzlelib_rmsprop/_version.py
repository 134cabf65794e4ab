"""The version of the package, in one place: setuptools, checkpoints and the commands read it here."""

__version__ = "0.2.0"
