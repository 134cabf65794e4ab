"""Settings of Config that are refused."""

from puzzlelib_rmsprop import Config
from puzzlelib_rmsprop.errors import ConfigError
from tests.refused import each, refuse, rows

TABLE = [
    *rows(
        ConfigError,
        (lambda: setattr(Config, "backend", "cpu"), "Config.backend must be one of.*got 'cpu'"),
        (lambda: setattr(Config, "bakend", 1), "Config has no setting 'bakend'; it has backend"),
        (lambda: setattr(Config, "numThreads", 0), "Config.numThreads must be an int >= 1; got 0"),
        (lambda: setattr(Config, "numThreads", 1.5), "Config.numThreads must be an int >= 1; got 1.5"),
        (lambda: setattr(Config, "deviceIdx", -1), "Config.deviceIdx must be an int >= 0; got -1"),
        (lambda: setattr(Config, "numThreads", True), "Config.numThreads must be an int >= 1; got True"),
        (lambda: setattr(Config, "numThreads", "2"), "Config.numThreads must be an int >= 1; got '2'"),
        (lambda: setattr(Config, "deviceIdx", None), "Config.deviceIdx must be an int >= 0; got None"),
        (lambda: setattr(Config, "globalEvalMode", 1), "Config.globalEvalMode must be True or False; got 1"),
    ),
]


@each(TABLE)
def test_refused(call, error, message):
    refuse(call, error, message)
