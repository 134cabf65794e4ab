"""The tests. Those that say nothing else mean the CPU, wherever they run, and so do the processes they start."""

from puzzlelib_rmsprop import Config

Config.backend = Config.Backend.cpu
