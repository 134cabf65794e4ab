"""The package's commands: ``doctor``, what works on a machine; ``inspect``, what is in a file."""
