"""The tests. By default they, and the processes they start, use the CPU backend, even if there is a GPU."""

from puzzlelib_rmsprop import Config

Config.backend = Config.Backend.cpu
